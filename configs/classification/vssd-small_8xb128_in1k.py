# VSSD-S.
_base_ = ["_base_/in1k_300e_lr6e-4.py"]

model = dict(model=dict(name="vssd_small", drop_path_rate=0.4))

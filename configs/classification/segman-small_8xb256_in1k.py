# SegMAN-S.
_base_ = ["_base_/in1k_300e_segman.py"]

model = dict(model=dict(name="segman_small", drop_path_rate=0.15))

# MSVMamba-S of the second generation.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="msvmambav3_small", drop_path_rate=0.4))

# HRVMamba-S.
_base_ = ["_base_/in1k_300e_hrvmamba.py"]

model = dict(model=dict(name="hrvmamba_small", drop_path_rate=0.2))

# MSVMamba-T.
_base_ = ["_base_/in1k_300e.py"]

model = dict(model=dict(name="msvmamba_tiny", drop_path_rate=0.2))

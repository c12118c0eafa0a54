# EfficientVMamba-S.
_base_ = ["_base_/in1k_300e_efficientvmamba.py"]

model = dict(model=dict(name="efficientvmamba_small"))

# EfficientViM-M4.
_base_ = ["_base_/in1k_300e_efficientvim_256.py"]

model = dict(model=dict(name="vssm_efficientvim_m4"))

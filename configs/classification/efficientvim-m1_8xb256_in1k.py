# EfficientViM-M1.
_base_ = ["_base_/in1k_300e_efficientvim.py"]

model = dict(model=dict(name="vssm_efficientvim_m1"))

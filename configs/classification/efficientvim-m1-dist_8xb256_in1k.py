# EfficientViM-M1 with a second set of heads, for distillation.
_base_ = ["_base_/in1k_300e_efficientvim-dist.py"]

model = dict(model=dict(name="vssm_efficientvim_m1_dist"))

# EfficientViM-M4 with a second set of heads, for distillation.
_base_ = ["_base_/in1k_300e_efficientvim-dist_256.py"]

model = dict(model=dict(name="vssm_efficientvim_m4_dist"))

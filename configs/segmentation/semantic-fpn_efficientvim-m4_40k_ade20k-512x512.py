# Semantic FPN on vssm_efficientvim_m4, 40 000 steps.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512_multiple32.py",
    "_base_/semantic-fpn.py",
    "_base_/schedule_40k_efficientvim.py",
]

model = dict(backbone=dict(model_name="vssm_efficientvim_m4", out_indices=(0, 1, 2), norm_eval=True))

# Semantic FPN on vssm_efficientvim_m4, 40 000 steps: 21.72 M parameters, 22 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 41.3.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512_multiple32.py",
    "_base_/semantic-fpn.py",
    "_base_/schedule_40k_efficientvim.py",
]

model = dict(
    backbone=dict(model_name="vssm_efficientvim_m4", out_indices=(0, 1, 2), norm_eval=True),
    neck=dict(in_channels=[224, 320, 512]),
)

# Mask R-CNN on efficientvmamba_base, 12 epochs: 53.22 M parameters, 252 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 43.7, mask AP 40.2; 53 M, 252 GFLOPs.
# Trained in mixed precision. The figures are from secondary sources, not checked against the paper.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="efficientvmamba_base", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(type="AutoAmpOptimWrapper", paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

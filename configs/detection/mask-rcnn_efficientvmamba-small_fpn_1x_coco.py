# Mask R-CNN on efficientvmamba_small, 12 epochs: 30.91 M parameters, 197 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 39.3, mask AP 36.7; 31 M, 197 GFLOPs.
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
    backbone=dict(model_name="efficientvmamba_small", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(type="AutoAmpOptimWrapper", paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

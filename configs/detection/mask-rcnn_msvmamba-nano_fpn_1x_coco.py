# Mask R-CNN on msvmamba_nano, 12 epochs: 26.57 M parameters, 188 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: no AP; 26.57 M, 187.5 GFLOPs.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="msvmamba_nano", drop_path_rate=0.2),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

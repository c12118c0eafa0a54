# Cascade Mask R-CNN on vmamba_tiny_s1l8, 12 epochs: 82.68 M parameters, 405 GFLOPs at 1280 x 800 pixels.
# Nothing was published for it.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/cascade-mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_tiny_s1l8", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vmamba))

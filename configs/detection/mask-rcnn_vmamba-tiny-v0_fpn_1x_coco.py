# Mask R-CNN on vmamba_tiny_v0, 12 epochs: 42.40 M parameters, 286 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 46.5, mask AP 42.1; 42 M, 286 GFLOPs.
# Weights: https://github.com/MzeroMiko/VMamba/releases/download/%23v0det/vssmtiny_mask_rcnn_swin_fpn_coco_epoch_12.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_tiny_v0", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

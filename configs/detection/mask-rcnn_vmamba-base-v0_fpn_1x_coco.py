# Mask R-CNN on vmamba_base_v0, 12 epochs: 95.63 M parameters, 540 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 48.6, mask AP 43.3; 96 M, 540 GFLOPs.
# Weights: https://github.com/MzeroMiko/VMamba/releases/download/%23v0det/vssmbase_mask_rcnn_swin_fpn_coco_epoch_12.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_base_v0", drop_path_rate=0.2),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

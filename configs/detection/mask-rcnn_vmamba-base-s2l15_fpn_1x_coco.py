# Mask R-CNN on vmamba_base_s2l15, 12 epochs: 107.93 M parameters, 485 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 49.2, mask AP 44.1; 108 M, 485 GFLOPs.
# Weights: https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_base_epoch_11.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_base_s2l15", drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vmamba))

# Mask R-CNN on vmamba_small_s2l15, 36 epochs, multi-scale: 69.65 M parameters, 349 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 49.9, mask AP 44.2; 70 M, 349 GFLOPs.
# The official README prints 384 GFLOPs, its script 349.
# Weights: https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_small_ms_3x_epoch_32.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance_ms.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_3x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_small_s2l15", drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vmamba))

# Mask R-CNN on msvmamba_tiny, 12 epochs: 52.55 M parameters, 265 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 46.9, mask AP 42.2; 53 M, 265 GFLOPs.
# The official README prints 252 GFLOPs, its config 265.
# Weights: in the official repository's Google Drive folders.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="msvmamba_tiny", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

# Mask R-CNN on msvmamba_micro, 12 epochs: 31.52 M parameters, 201 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 43.8, mask AP 39.9; 32 M, 201 GFLOPs.
# Weights: in the official repository's Google Drive folders.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="msvmamba_micro", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

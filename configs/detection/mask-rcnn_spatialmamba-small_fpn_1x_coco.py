# Mask R-CNN on spatialmamba_small, 12 epochs: 62.71 M parameters, 315 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 49.2, mask AP 44.0; 63 M, 315 GFLOPs.
# Weights: https://drive.google.com/file/d/1pzjz1A6nWA9W2FW2Ymg5JSAMbvxmc2hP/view
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="spatialmamba_small", drop_path_rate=0.3),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_spatialmamba))

# Mask R-CNN on vssd_small, 36 epochs, multi-scale: 59.71 M parameters, 325 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 50.0, mask AP 44.6; 59 M, 325 GFLOPs.
# Weights: the official README links the file of the 1x run.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance_ms.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_3x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vssd_small", drop_path_rate=0.4),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vssd))

# Mask R-CNN on spatialmamba_base, 12 epochs: 115.25 M parameters, 494 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 50.4, mask AP 45.1; 115 M, 494 GFLOPs.
# Weights: https://drive.google.com/file/d/1oTyT0q88ernqc1_IyqBWHrVJJPGNRN8r/view
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="spatialmamba_base", drop_path_rate=0.5),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_spatialmamba))

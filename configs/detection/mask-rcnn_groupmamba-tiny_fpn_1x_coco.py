# Mask R-CNN on groupmamba_tiny, 12 epochs: 40.62 M parameters, 266 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 47.6, mask AP 42.9; 40 M, 279 GFLOPs.
# The recipe was not published: this is VMamba's, with the drop path of the ImageNet training.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="groupmamba_tiny", drop_path_rate=0.05),
    neck=dict(in_channels=[64, 128, 348, 448]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_groupmamba))

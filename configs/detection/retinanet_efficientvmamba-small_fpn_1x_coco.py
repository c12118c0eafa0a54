# RetinaNet on efficientvmamba_small, 12 epochs: 21.00 M parameters, 179 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 39.1; 19 M.
# The recipe was not published: this is the one of Mask R-CNN.
# The figures are from secondary sources, not checked against the paper.
# With heads of the usual width the published size does not come out.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_detection.py",
    "_base_/retinanet_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="efficientvmamba_small", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

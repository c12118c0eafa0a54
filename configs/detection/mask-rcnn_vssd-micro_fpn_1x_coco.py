# Mask R-CNN on vssd_micro, 12 epochs: 33.22 M parameters, 220 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 45.4, mask AP 41.3; 33 M, 220 GFLOPs.
# Weights: https://huggingface.co/YuhengSSS/VSSD/resolve/main/mask_rcnn_vssd_fpn_coco_micro.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vssd_micro", drop_path_rate=0.1),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vssd))

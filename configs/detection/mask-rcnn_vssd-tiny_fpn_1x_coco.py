# Mask R-CNN on vssd_tiny, 12 epochs: 43.91 M parameters, 265 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 46.9, mask AP 42.6; 44 M, 265 GFLOPs.
# Weights: https://huggingface.co/YuhengSSS/VSSD/resolve/main/mask_rcnn_vssd_fpn_coco_tiny.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vssd_tiny", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vssd))

# Mask R-CNN on spatialmamba_tiny, 12 epochs: 46.39 M parameters, 261 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 47.6, mask AP 42.9; 46 M, 261 GFLOPs.
# Weights: https://drive.google.com/file/d/1lmA0_pBQbvuMkJD1R5m3oS_2jXaSy3N3/view
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="spatialmamba_tiny", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_spatialmamba))

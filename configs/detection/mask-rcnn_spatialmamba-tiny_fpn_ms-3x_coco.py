# Mask R-CNN on spatialmamba_tiny, 36 epochs, multi-scale: 46.39 M parameters, 261 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 49.3, mask AP 43.6; 46 M, 261 GFLOPs.
# Weights: https://drive.google.com/file/d/1PY0_8ZCwogssmaULdc6MzVbCTGm_83Ew/view
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance_ms.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_3x.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="spatialmamba_tiny", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_spatialmamba))

# Mask R-CNN on vmamba_tiny_s1l8, 36 epochs, multi-scale.
_base_ = ["_base_/mask-rcnn_fpn_ms-3x_coco.py"]

model = dict(backbone=dict(model_name="vmamba_tiny_s1l8", drop_path_rate=0.2))

# Mask R-CNN on vmamba_tiny_s2l5, 36 epochs, multi-scale.
_base_ = ["_base_/mask-rcnn_fpn_ms-3x_coco.py"]

model = dict(backbone=dict(model_name="vmamba_tiny_s2l5", drop_path_rate=0.2))

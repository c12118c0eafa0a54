# Mask R-CNN on vmamba_tiny_s1l8, 12 epochs.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="vmamba_tiny_s1l8", drop_path_rate=0.2))

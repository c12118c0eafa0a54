# Mask R-CNN on msvmamba_micro, 36 epochs, multi-scale.
_base_ = ["_base_/mask-rcnn_fpn_ms-3x_coco.py"]

model = dict(backbone=dict(model_name="msvmamba_micro", drop_path_rate=0.2))

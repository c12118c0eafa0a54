# Mask R-CNN on msvmamba_nano, 12 epochs.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="msvmamba_nano", drop_path_rate=0.2))

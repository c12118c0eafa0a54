# Mask R-CNN on spatialmamba_tiny, 12 epochs.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="spatialmamba_tiny", drop_path_rate=0.2))

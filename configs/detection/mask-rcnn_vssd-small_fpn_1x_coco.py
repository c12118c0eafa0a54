# Mask R-CNN on vssd_small, 12 epochs.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="vssd_small", drop_path_rate=0.4))

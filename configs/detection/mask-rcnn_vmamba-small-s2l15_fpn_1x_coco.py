# Mask R-CNN on vmamba_small_s2l15, 12 epochs.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="vmamba_small_s2l15", drop_path_rate=0.3))

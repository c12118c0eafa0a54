# RetinaNet on efficientvmamba_tiny, 12 epochs.
# The recipe was not published: this is the one of Mask R-CNN.
_base_ = ["_base_/retinanet_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="efficientvmamba_tiny", drop_path_rate=0.2))

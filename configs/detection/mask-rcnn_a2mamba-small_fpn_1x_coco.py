# Mask R-CNN on a2mamba_small, 12 epochs.
# No recipe was published: this is Swin's, with the drop path of the ImageNet training.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="a2mamba_small", drop_path_rate=0.2))

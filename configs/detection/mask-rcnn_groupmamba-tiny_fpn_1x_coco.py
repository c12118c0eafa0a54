# Mask R-CNN on groupmamba_tiny, 12 epochs.
# The recipe was not published: this is VMamba's, with the drop path of the ImageNet training.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="groupmamba_tiny", drop_path_rate=0.05))

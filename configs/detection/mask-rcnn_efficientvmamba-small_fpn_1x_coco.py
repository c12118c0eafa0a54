# Mask R-CNN on efficientvmamba_small, 12 epochs.
# Trained in mixed precision.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

model = dict(backbone=dict(model_name="efficientvmamba_small", drop_path_rate=0.2))
optim_wrapper = dict(type="AutoAmpOptimWrapper")

# Mask R-CNN on plainmamba_l2 with a ViT-Adapter, 12 epochs.
_base_ = ["_base_/mask-rcnn_vit-adapter_1x_coco.py"]

model = dict(backbone=dict(model_name="plainmamba_l2", drop_path_rate=0.2))

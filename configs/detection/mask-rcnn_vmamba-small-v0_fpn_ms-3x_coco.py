# Mask R-CNN on vmamba_small_v0, 36 epochs, multi-scale.
_base_ = ["_base_/mask-rcnn_fpn_ms-3x_coco.py"]

model = dict(backbone=dict(model_name="vmamba_small_v0", drop_path_rate=0.2))
# The first version's norms between the stages have names in the official code, which spares what is called a norm.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"downsample.norm": dict(decay_mult=0.0)}))

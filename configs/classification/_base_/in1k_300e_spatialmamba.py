# Spatial-Mamba's training on ImageNet-1k: VMamba's, to which a leaf adds MESA.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e.py", "classifier.py"]

# The official dt bias has one dimension and is not decayed.
optim_wrapper = dict(paramwise_cfg=dict(no_weight_decay=("dt_projs_bias",)))

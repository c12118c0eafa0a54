# UPerNet on vmamba_small_v0, 160 000 steps.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="vmamba_small_v0", drop_path_rate=0.3))
# The first version's norms between the stages have names in the official code, which spares what is called a norm.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"downsample.norm": dict(decay_mult=0.0)}))

# A2Mamba-S.
_base_ = ["_base_/in1k_300e_a2mamba.py"]

model = dict(model=dict(name="a2mamba_small", drop_path_rate=0.2))
custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=1.0, begin_epoch=75)]

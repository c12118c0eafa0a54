# A2Mamba-T; its average has decay 0.99984.
_base_ = ["_base_/in1k_300e_a2mamba.py"]

model = dict(model=dict(name="a2mamba_tiny", drop_path_rate=0.1))
custom_hooks = [
    {**_base_.custom_hooks[0], "momentum": 1.6e-4},
    dict(type="MESAHook", weight=1.0, begin_epoch=75),
]

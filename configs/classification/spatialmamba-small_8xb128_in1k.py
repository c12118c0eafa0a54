# Spatial-Mamba-S.
_base_ = ["_base_/in1k_300e_spatialmamba.py"]

model = dict(model=dict(name="spatialmamba_small", drop_path_rate=0.3))
custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=1.5, start=0.25)]

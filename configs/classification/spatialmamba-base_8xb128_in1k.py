# Spatial-Mamba-B.
_base_ = ["_base_/in1k_300e_spatialmamba.py"]

model = dict(model=dict(name="spatialmamba_base", drop_path_rate=0.5))
custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=2.0, start=0.25)]

# Spatial-Mamba-T.
_base_ = ["_base_/in1k_300e_spatialmamba.py"]

model = dict(model=dict(name="spatialmamba_tiny", drop_path_rate=0.2))
custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=1.0, start=0.25)]

# VSSD-B, with MESA.
_base_ = ["vssd-base_8xb128_in1k.py"]

custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=2.0, start=0.25)]

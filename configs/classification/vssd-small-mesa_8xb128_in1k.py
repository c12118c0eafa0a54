# VSSD-S, with MESA.
_base_ = ["vssd-small_8xb128_in1k.py"]

custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=1.5, start=0.25)]

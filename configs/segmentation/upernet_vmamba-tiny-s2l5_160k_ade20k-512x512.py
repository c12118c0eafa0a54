# UPerNet on vmamba_tiny_s2l5, 160 000 steps.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="vmamba_tiny_s2l5", drop_path_rate=0.2))

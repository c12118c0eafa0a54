# UPerNet on vmamba_base_s2l15, 160 000 steps.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="vmamba_base_s2l15", drop_path_rate=0.6))

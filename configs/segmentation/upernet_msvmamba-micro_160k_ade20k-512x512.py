# UPerNet on msvmamba_micro, 160 000 steps.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="msvmamba_micro", drop_path_rate=0.3))

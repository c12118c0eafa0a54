# UPerNet on msvmamba_nano, 160 000 steps.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="msvmamba_nano", drop_path_rate=0.3))

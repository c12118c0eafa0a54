# UPerNet on plainmamba_l2, 160 000 steps.
_base_ = ["_base_/upernet_plainmamba_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="plainmamba_l2", drop_path_rate=0.2))

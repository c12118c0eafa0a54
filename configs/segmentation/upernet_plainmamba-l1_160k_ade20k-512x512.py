# UPerNet on plainmamba_l1, 160 000 steps.
_base_ = ["_base_/upernet_plainmamba_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="plainmamba_l1", drop_path_rate=0.1))

# UPerNet on efficientvmamba_base, 160 000 steps.
# The recipe was not published: this is VMamba's.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="efficientvmamba_base", drop_path_rate=0.2))

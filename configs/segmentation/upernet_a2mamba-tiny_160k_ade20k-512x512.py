# UPerNet on a2mamba_tiny, 160 000 steps.
# No recipe was published: this is Swin's, with the drop path of the ImageNet training.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="a2mamba_tiny", drop_path_rate=0.1))

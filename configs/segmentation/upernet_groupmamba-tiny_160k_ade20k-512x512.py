# UPerNet on groupmamba_tiny, 160 000 steps.
# The recipe was not published: this is VMamba's, with the drop path of the ImageNet training.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

model = dict(backbone=dict(model_name="groupmamba_tiny", drop_path_rate=0.05))

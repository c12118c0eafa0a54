# SegMAN-S on Cityscapes, 160 000 steps.
_base_ = ["_base_/mmscope_160k_cityscapes-1024x1024.py"]

model = dict(
    backbone=dict(model_name="segman_small", drop_path_rate=0.2),
    decode_head=dict(channels=152, map_channels=288),
)

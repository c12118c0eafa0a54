# SegMAN-B on ADE20K, 160 000 steps.
_base_ = ["_base_/mmscope_160k_ade20k-512x512.py"]

model = dict(
    backbone=dict(model_name="segman_base", drop_path_rate=0.25),
    decode_head=dict(channels=180, map_channels=320),
)

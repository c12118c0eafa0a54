# SegMAN-S on COCO-Stuff 164k, 160 000 steps.
_base_ = ["_base_/mmscope_160k_coco-stuff164k-512x512.py"]

model = dict(
    backbone=dict(model_name="segman_small", drop_path_rate=0.2),
    decode_head=dict(channels=144, map_channels=288),
)

# SegMAN-L on ADE20K, 160 000 steps.
# The rate of the drop path was not published: this is SegMAN-B's.
_base_ = ["_base_/mmscope_160k_ade20k-512x512.py"]

model = dict(
    backbone=dict(model_name="segman_large", drop_path_rate=0.25),
    decode_head=dict(channels=224, map_channels=432),
)

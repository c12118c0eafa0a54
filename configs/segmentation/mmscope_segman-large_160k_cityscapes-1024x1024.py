# SegMAN-L on Cityscapes, 160 000 steps.
# The rate of the drop path was not published: this is SegMAN-B's.
_base_ = ["_base_/mmscope_160k_cityscapes-1024x1024.py"]

model = dict(
    backbone=dict(model_name="segman_large", drop_path_rate=0.25),
    decode_head=dict(channels=224, map_channels=432),
    # Whole images, unlike the smaller ones.
    test_cfg=dict(_delete_=True, mode="whole"),
)

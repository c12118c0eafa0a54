# SegMAN-T on COCO-Stuff 10k, 160 000 steps.
# No recipe was published for this version: this is that for the 164k one.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco-stuff10k_512.py",
    "_base_/mmscope.py",
    "_base_/schedule_160k_mmscope.py",
]

model = dict(backbone=dict(model_name="segman_tiny"), decode_head=dict(channels=128, map_channels=192, num_classes=171))

# Mamba YOLO on mambayolo_large, from scratch, 300 epochs.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_mosaic.py",
    "_base_/mambayolo_pafpn.py",
    "_base_/schedule_mambayolo_300e.py",
]

model = dict(
    backbone=dict(model_name="mambayolo_large"),
    neck=dict(depth=2),
)

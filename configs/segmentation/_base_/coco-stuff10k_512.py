# COCO-Stuff 10k under data/coco_stuff10k, prepared by `vssm prepare coco-stuff10k`; else as coco-stuff164k_512.py.
_base_ = ["mmseg::_base_/datasets/coco-stuff10k.py"]

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=2)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

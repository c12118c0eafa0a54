# COCO-Stuff 164k under data/coco_stuff164k, prepared by `vssm prepare coco-stuff164k`: 171 classes, crops of 512 x 512
# pixels, 2 images per process (8 x 2 = 16 in all). Tested whole with the short side at 512 and both sides rounded up to
# multiples of 32.
_base_ = ["mmseg::_base_/datasets/coco-stuff164k.py"]

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=2)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

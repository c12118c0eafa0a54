# COCO 2017 with boxes under data/coco: mosaics of four images of 640 pixels, enlarged by 0.5 to 1.5, flipped and with
# colours changed; 64 images per process (8 x 64 = 512 in all).
_base_ = ["coco_detection.py"]

size = (640, 640)
grey = 114.0
train_pipeline = [
    dict(type="Mosaic", img_scale=size, pad_val=grey),
    dict(type="CentredAffine", size=size, scaling_ratio_range=(0.5, 1.5), max_translate_ratio=0.1),
    dict(type="GainJitter", gains=(0.015, 0.7, 0.4)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(2, 2), keep_empty=False),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=None),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    # Workers are started anew each epoch, because that is when they are seeded.
    persistent_workers=False,
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        type="MultiImageMixDataset",
        dataset=dict(
            type="CocoDataset",
            data_root="data/coco/",
            ann_file="annotations/instances_train2017.json",
            data_prefix=dict(img="train2017/"),
            filter_cfg=dict(filter_empty_gt=False),
            pipeline=[
                dict(type="LoadImageFromFile", backend_args=None),
                dict(type="LoadAnnotations", with_bbox=True),
                dict(type="Resize", scale=size, keep_ratio=True),
            ],
        ),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(batch_size=16, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

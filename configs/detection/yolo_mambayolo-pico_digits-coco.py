# Mamba YOLO from scratch on handwritten digits on photographs, on two CPU cores. Make the data first:
# python tools/prepare_data.py digits-coco data/digits-coco
_base_ = ["_base_/mambayolo_pafpn.py", "../_base_/mini_digits.py"]
default_scope = "mmdet"

classes = tuple("0123456789")
model = dict(
    # A quarter of the states: seven epochs in the time of five.
    backbone=dict(model_name="mambayolo_pico", d_state=4),
    neck=dict(d_state=4),
    # Which digit it is takes longer to learn than where.
    bbox_head=dict(num_classes=10, img_size=128, gains=dict(cls=1.0)),
    test_cfg=dict(nms_pre=500, score_thr=0.01, max_per_img=20),
)

data_root = "{{$VSSM_DIGITS_COCO:data/digits-coco}}"
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CocoDataset",
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        metainfo=dict(classes=classes),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        metainfo=dict(classes=classes),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale_factor=1.0, keep_ratio=True),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file=data_root + "/annotations/instances_val2017.json", metric="bbox")
test_evaluator = val_evaluator

epochs = 7
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        by_epoch=True,
        begin=1,
        end=epochs,
        T_max=epochs - 1,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(save_best="coco/bbox_mAP_50"))
log_processor = dict(window_size=25)
visualizer = dict(type="DetLocalVisualizer")

# UPerNet from scratch on handwritten digits on photographs, on two CPU cores. Make the data first:
# python tools/prepare_data.py digits-ade data/digits-ade
_base_ = ["_base_/upernet.py", "../_base_/mini_digits.py"]
default_scope = "mmseg"

classes = ("photograph", *"0123456789")
# A batch this small, and split between processes, is better off without statistics over it.
norm_cfg = dict(type="GN", num_groups=8)
channels = 32
# Four pixels of five belong to the photograph.
loss = dict(type="CrossEntropyLoss", class_weight=[0.3] + [1.0] * 10)
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=dict(model_name="vmamba_pico", pretrained=False),
    decode_head=dict(
        # The last map has 4 x 4 pixels.
        pool_scales=(1, 2, 4),
        channels=channels,
        dropout_ratio=0.0,
        num_classes=len(classes),
        norm_cfg=norm_cfg,
        loss_decode=dict(**loss, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        channels=channels,
        dropout_ratio=0.0,
        num_classes=len(classes),
        norm_cfg=norm_cfg,
        loss_decode=dict(**loss, loss_weight=0.4),
    ),
)

dataset = dict(
    type="BaseSegDataset",
    data_root="{{$VSSM_DIGITS_ADE:data/digits-ade}}",
    img_suffix=".jpg",
    seg_map_suffix=".png",
    reduce_zero_label=True,
    metainfo=dict(
        classes=classes,
        palette=[
            (60, 60, 60),
            (230, 25, 75),
            (60, 180, 75),
            (255, 225, 25),
            (0, 130, 200),
            (245, 130, 48),
            (145, 30, 180),
            (70, 240, 240),
            (240, 50, 230),
            (210, 245, 60),
            (250, 190, 212),
        ],
    ),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            # Nine photographs are soon known by heart.
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale_factor=1.0, keep_ratio=True),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        by_epoch=True,
        begin=0,
        end=_base_.epochs,
        T_max=_base_.epochs,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(save_best="mIoU"))
log_processor = dict(window_size=50)
visualizer = dict(type="SegLocalVisualizer")

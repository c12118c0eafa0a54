# hrvmamba_pico finds where the strokes of handwritten digits on photographs end and cross, on two CPU cores.
_base_ = ["_base_/default_runtime.py"]

model = dict(
    type="PoseEstimator",
    model=dict(name="hrvmamba_pico", pretrained=False),
    keypoints=3,
    size=(64, 64),
    sigma=1.0,
    # A mirrored digit is none.
    flip_test=False,
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="DigitKeypoints",
        split="train",
        count=600,
        augment=dict(shift_prob=0.5, scale=(0.8, 1.2), degrees=15, half_body_prob=0.0, flip_prob=0.0),
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="DigitKeypoints", split="val", count=120),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="KeypointAP", dataset=dict(type="DigitKeypoints", split="val", count=120))
test_evaluator = val_evaluator

epochs = 6
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=5.0),
)
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
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
val_cfg = {}
test_cfg = {}
default_hooks = dict(logger=dict(interval=10))
log_processor = dict(window_size=10)

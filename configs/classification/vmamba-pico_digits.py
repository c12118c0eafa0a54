# The demo: vmamba_pico learns scikit-learn's 1,797 handwritten digits, 20 % of them held out, on two CPU cores.
_base_ = ["_base_/default_runtime.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vmamba_pico", pretrained=False, num_classes=10, drop_path_rate=0.05),
    label_smoothing=0.1,
)

# 8 x 8 scans, enlarged; small shifts, turns and zooms are what handwriting varies by.
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="Digits",
        split="train",
        transform=dict(input_size=32, degrees=10, translate=0.08, scale=(0.9, 1.1)),
    ),
)
val_dataloader = dict(
    batch_size=120,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="Digits", split="test", transform=dict(input_size=32)),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        by_epoch=True,
        begin=2,
        end=14,
        T_max=12,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=14, val_interval=1)
val_cfg = {}
test_cfg = {}

default_hooks = dict(logger=dict(interval=11))
log_processor = dict(window_size=11)
custom_hooks = [
    dict(type="DemoFiguresHook"),
]

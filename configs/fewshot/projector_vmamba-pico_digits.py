# The demo: scikit-learn's digits 0 to 5 first; then 6 and 7, then 8 and 9, from five scans each. On two CPU cores.
_base_ = ["../classification/_base_/default_runtime.py"]
custom_imports = dict(imports=["vssm.classify", "vssm.fewshot"], allow_failed_imports=False)

model = dict(
    type="IncrementalClassifier",
    # The map of the third stage: of an image of 32 pixels it has 2 x 2 places, that of the last one has one.
    model=dict(name="vmamba_pico", drop_path_rate=0.05, out_indices=(2,)),
    projector=dict(out_channels=64, size=2, mixer="map", d_state=64, dt_rank=64),
    classes=10,
    base_classes=6,
)

split = dict(base=6, ways=2, sessions=2, shots=5)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="SessionClasses",
        split=split,
        dataset=dict(
            type="Digits",
            split="train",
            transform=dict(input_size=32, degrees=10, translate=0.08, scale=(0.9, 1.1)),
        ),
    ),
)
val_dataloader = dict(
    batch_size=120,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="SessionClasses",
        split=split,
        dataset=dict(type="Digits", split="test", transform=dict(input_size=32)),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        by_epoch=True,
        begin=1,
        end=8,
        T_max=7,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=1)
val_cfg = {}
test_cfg = {}

default_hooks = dict(logger=dict(interval=13))
log_processor = dict(window_size=13)

# The later sessions, see vssm.fewshot.Recipe.
incremental = dict(
    lr=0.05,
    steps=150,
    batch_size=16,
    old_copies=5,
    separate_new=0.5,
    mix_probability=0.0,
)

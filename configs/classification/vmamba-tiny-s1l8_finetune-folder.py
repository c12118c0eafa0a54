# Fine-tune on a folder of images, at 288 pixels instead of the 224 that the weights were trained at.
# The data: <root>/train/<class>/*.jpg and <root>/val/<class>/*.jpg, where <root> is the environment variable VSSM_DATA.
# The number of classes has to be said: --cfg-options model.model.num_classes=N. Another model: model.model.name=NAME.
# The recipe is a usual one for small data sets, not a published one; nothing in it was searched for.
_base_ = ["_base_/default_runtime.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vmamba_tiny_s1l8", pretrained=True, num_classes=10, drop_path_rate=0.1),
    label_smoothing=0.1,
)

data = dict(type="ImageFolder", env="VSSM_DATA", default_root="data/folder")
loader = dict(batch_size=32, num_workers=4, collate_fn=dict(type="default_collate"))
train_dataloader = dict(
    **loader,
    # Workers are started anew each epoch, because that is when they are seeded.
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **data,
        split="train",
        transform=dict(
            input_size=288,
            is_training=True,
            interpolation="bicubic",
            scale=(0.35, 1.0),
            auto_augment="rand-m7-mstd0.5-inc1",
            re_prob=0.1,
        ),
    ),
)
val_dataloader = dict(
    **loader,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **data,
        split="val",
        # Resize to 303, then the central 288.
        transform=dict(input_size=288, is_training=False, interpolation="bicubic", crop_pct=0.95),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    # Early layers change least: each group of layers has 0.8 times the rate of the next.
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(model_no_weight_decay=True, layer_decay=0.8),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-6,
        by_epoch=True,
        begin=2,
        end=30,
        T_max=28,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = {}
test_cfg = {}

default_hooks = dict(logger=dict(interval=10))
# For 32 images per step. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=32)

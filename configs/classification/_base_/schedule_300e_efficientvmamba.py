# EfficientVMamba's recipe as its training logs state it; its repository's yaml says otherwise.
# It ran in float16 mixed precision: add --amp.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    # The same rate for 2048 images per step (tiny, small) and for 1024 (base).
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.04, eps=1e-8, betas=(0.9, 0.999)),
    # Officially everything but biases and one-dimensional parameters is decayed.
    paramwise_cfg=dict(model_no_weight_decay=False, layer_decay=None),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    # From 1e-7.
    dict(type="LinearLR", start_factor=5e-5, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-6,
        by_epoch=True,
        begin=20,
        end=300,
        T_max=280,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = {}
test_cfg = {}

# timm's ModelEma with decay 0.9999, batch norm's statistics included.
custom_hooks = [
    dict(
        type="EMAHook",
        ema_type="ExponentialMovingAverage",
        momentum=1e-4,
        update_buffers=True,
        strict_load=True,
        priority="ABOVE_NORMAL",
    )
]

# 16 processes x 128 images; the official rate does not follow the batch.
auto_scale_lr = dict(enable=False, base_batch_size=2048)

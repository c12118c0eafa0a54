# The official recipe of VSSD-S and -B and of MSVMamba-B's third version: VMamba's with smaller rates.
# They ran in float16 mixed precision: add --amp.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    # 3e-4 per 512 images.
    optimizer=dict(type="AdamW", lr=6e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    # Officially everything but biases and one-dimensional parameters is decayed.
    paramwise_cfg=dict(model_no_weight_decay=False, layer_decay=None),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    # From 1e-6.
    dict(type="LinearLR", start_factor=1 / 600, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=6e-6,
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

# 8 processes x 128 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=1024)

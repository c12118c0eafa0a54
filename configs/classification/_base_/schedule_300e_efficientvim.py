# EfficientViM's official recipe: 300 epochs, then 10 at the final rate. It ran in mixed precision: add --amp.
# For the 450 epochs of the second set of published weights: --cfg-options param_scheduler.1.end=450
# param_scheduler.1.T_max=430 train_cfg.max_epochs=460 custom_hooks.1.begin_epoch=112
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    # For 2048 images per step.
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    # Officially everything but biases and one-dimensional parameters is decayed.
    paramwise_cfg=dict(model_no_weight_decay=False, layer_decay=None),
    clip_grad=dict(max_norm=0.02),
)
param_scheduler = [
    # From 2e-6.
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=2e-5,
        by_epoch=True,
        begin=20,
        end=300,
        T_max=280,
        convert_to_iter_based=True,
    ),
]
# The rate stays where the cosine ends.
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=1)
val_cfg = {}
test_cfg = {}

# timm's ModelEma with decay 0.9995, batch norm's statistics included.
custom_hooks = [
    dict(
        type="EMAHook",
        ema_type="ExponentialMovingAverage",
        momentum=5e-4,
        update_buffers=True,
        strict_load=True,
        priority="ABOVE_NORMAL",
    )
]

# 8 processes x 256 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=2048)

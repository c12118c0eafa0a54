# The official VMamba recipe, which several families share: 300 epochs of AdamW at 1024 images per step, 20 epochs of
# warm-up, cosine to 1e-5. It ran in float16 mixed precision: add --amp.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    # 5e-4 per 512 images.
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    # The official training decays everything but biases and one-dimensional parameters, the scan's A and dt bias
    # included. True spares those too, which is the usual practice today.
    paramwise_cfg=dict(model_no_weight_decay=False, layer_decay=None),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
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

# timm's ModelEma with decay 0.9999, batch norm's statistics included; evaluation and the published weights are those
# of the average.
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

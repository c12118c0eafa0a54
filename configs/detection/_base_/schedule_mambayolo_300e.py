# 300 epochs of SGD at 512 images per step in mixed precision, an average of the weights, no mosaics in the last ten
# epochs: the authors' program for training. Which settings the published AP is of is not said.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=300, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="AutoAmpOptimWrapper",
    constructor="FamilyDecayConstructor",
    # The decay is 5e-4 for each 64 of the images in a step.
    optimizer=dict(type="SGD", lr=0.01, momentum=0.937, nesterov=True, weight_decay=4e-3),
    clip_grad=dict(max_norm=10.0),
)
# Over the warm-up of the first three epochs, which `YOLOWarmupHook` lays on it.
param_scheduler = [dict(type="LinearLR", start_factor=1.0, end_factor=0.01, by_epoch=True, begin=0, end=300)]
custom_hooks = [
    dict(type="YOLOWarmupHook", epochs=3, bias_lr=0.1, momentum=0.8),
    dict(type="MosaicOffHook", epochs=10),
    dict(
        type="EMAHook",
        ema_type="ExpMomentumEMA",
        momentum=1e-4,
        gamma=2000,
        update_buffers=True,
        strict_load=True,
        priority="ABOVE_NORMAL",
    ),
]
# 8 processes x 64 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=512)

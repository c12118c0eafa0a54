# EfficientViM's official recipe: 300 epochs, then 10 at the final rate. What is not here is as in schedule_300e.py.
# For the 450 epochs of the second set of published weights: --cfg-options param_scheduler.1.end=450
# param_scheduler.1.T_max=430 train_cfg.max_epochs=460 custom_hooks.1.begin_epoch=112
_base_ = ["schedule_300e.py"]

# For 2048 images per step.
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=0.02))
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
train_cfg = dict(max_epochs=310)

# timm's ModelEma with decay 0.9995.
custom_hooks = [{**_base_.custom_hooks[0], "momentum": 5e-4}]

# 8 processes x 256 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=2048)

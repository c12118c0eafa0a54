# SegMAN's official recipe. What is not here is as in schedule_300e.py. Where the warm-up starts and the cosine ends was
# not published; these are the values of A2Mamba, by the same group.
_base_ = ["schedule_300e.py"]

# 1e-3 per 1024 images.
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    # From 1e-6.
    dict(type="LinearLR", start_factor=5e-4, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=300,
        T_max=295,
        convert_to_iter_based=True,
    ),
]

# timm's ModelEma with decay 0.99984.
custom_hooks = [{**_base_.custom_hooks[0], "momentum": 1.6e-4}]

# 8 processes x 256 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=2048)

# Vim's official recipe, DeiT's: 300 epochs, then 10 at the final rate, in float32. What is not here is as in
# schedule_300e.py.
_base_ = ["schedule_300e.py"]

# 5e-4 per 512 images.
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.1),
    # A is decayed, as officially; the bias of the step size is a row here, hence spared by name.
    paramwise_cfg=dict(no_weight_decay=["pos_embed", "cls_token", "dt_projs_bias"]),
    clip_grad=None,
)
param_scheduler = [
    # From 1e-6.
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
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
# The rate stays where the cosine ends.
train_cfg = dict(max_epochs=310)

# timm's ModelEma with decay 0.99996.
custom_hooks = [{**_base_.custom_hooks[0], "momentum": 4e-5}]

# A2Mamba's official recipe: 300 epochs, then 10 at the final rate. What is not here is as in schedule_300e.py.
_base_ = ["schedule_300e.py"]

# 1e-3 per 1024 images. The official dt bias has one dimension and is not decayed.
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(no_weight_decay=("dt_projs_bias",)))
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
# The rate stays where the cosine ends.
train_cfg = dict(max_epochs=310)

# 8 processes x 256 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=2048)

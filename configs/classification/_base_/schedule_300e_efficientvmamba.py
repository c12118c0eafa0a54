# EfficientVMamba's recipe as its training logs state it; its repository's yaml says otherwise.
# What is not here is as in schedule_300e.py.
_base_ = ["schedule_300e.py"]

# The same rate for 2048 images per step (tiny, small) and for 1024 (base).
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.04), clip_grad=dict(max_norm=1.0))
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

# 16 processes x 128 images; the official rate does not follow the batch.
auto_scale_lr = dict(enable=False, base_batch_size=2048)

# Vim's training of overlapping patches on ImageNet-1k: 30 epochs at a constant rate, from the weights without overlap.
_base_ = ["in1k_300e_vim.py"]

optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
# Warm-up, rate and minimum are officially the same number.
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=30,
        T_max=25,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30)

# EfficientViM's recipe for Semantic FPN: 40 000 steps of AdamW at 32 images per step, norms and biases decayed too.
# What is not here is as in schedule_160k.py.
_base_ = ["schedule_160k.py"]

train_cfg = dict(max_iters=40000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-6, by_epoch=False, begin=0, end=40000)]
default_hooks = dict(checkpoint=dict(interval=4000))
# 8 processes x 4 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(base_batch_size=32)

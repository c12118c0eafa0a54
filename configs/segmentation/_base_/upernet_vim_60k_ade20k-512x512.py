# Vim's UPerNet on ADE20K: 60 000 steps at 32 images per step (officially 4 processes x 8), on the blocks at the ends of
# a plain net's quarters, from which a pyramid of four strides is made. Tested in windows of 512 pixels, 341 apart.
# A leaf says the rate, the decay and the widths, which are the net's. Biases and parameters of one dimension are not
# decayed; that is the rule of the ImageNet training, assumed here. The drop path was not published: there is none.
_base_ = ["default_runtime.py", "ade20k_512.py", "upernet.py", "schedule_160k.py"]

model = dict(
    backbone=dict(out_indices=None, class_token=False),
    neck=dict(type="Feature2Pyramid", rescales=[4, 2, 1, 0.5], norm_cfg=dict(type="SyncBN", requires_grad=True)),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=60000, val_interval=6000)
optim_wrapper = dict(
    constructor="FamilyDecayConstructor",
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={name: dict(decay_mult=0.0) for name in ("stem.conv.bias", "dt_projs_bias", "pos_embed")},
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=60000),
]
default_hooks = dict(checkpoint=dict(interval=6000))
# 8 processes x 4 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(base_batch_size=32)

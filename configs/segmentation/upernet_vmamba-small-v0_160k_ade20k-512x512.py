# UPerNet on vmamba_small_v0, 160 000 steps: 76.07 M parameters, 1081 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 49.5, 50.5 with TTA; 76 M, 1081 GFLOPs.
# Weights: https://github.com/MzeroMiko/VMamba/releases/download/%23v0seg/vssmsmall_upernet_4xb4-160k_ade20k-512x512_iter_160000.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_small_v0", drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

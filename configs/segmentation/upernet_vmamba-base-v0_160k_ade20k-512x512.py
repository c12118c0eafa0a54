# UPerNet on vmamba_base_v0, 160 000 steps: 109.77 M parameters, 1226 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 50.0, 51.3 with TTA; 110 M, 1226 GFLOPs.
# Weights: https://github.com/MzeroMiko/VMamba/releases/download/%23v0seg/vssmbase_upernet_4xb4-160k_ade20k-512x512_iter_128000.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_base_v0", drop_path_rate=0.3),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

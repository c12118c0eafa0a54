# UPerNet on vmamba_base_s2l15, 160 000 steps: 122.07 M parameters, 1170 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 51.0, 51.6 with TTA; 122 M, 1170 GFLOPs.
# Weights: https://github.com/MzeroMiko/VMamba/releases/download/%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_base_iter_160000.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_base_s2l15", drop_path_rate=0.6),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vmamba))

# UPerNet on vmamba_tiny_s1l8, 160 000 steps: 61.90 M parameters, 949 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 47.9, 48.8 with TTA; 62 M, 949 GFLOPs.
# Weights: https://github.com/MzeroMiko/VMamba/releases/download/%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vmamba_tiny_s1l8", drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vmamba))

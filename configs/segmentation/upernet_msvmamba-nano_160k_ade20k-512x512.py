# UPerNet on msvmamba_nano, 160 000 steps: 35.73 M parameters, 860 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: no mIoU; 35.73 M, 860.0 GFLOPs.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="msvmamba_nano", drop_path_rate=0.3),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

# UPerNet on msvmamba_tiny, 160 000 steps: 64.70 M parameters, 943 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 47.8; 65 M, 942 GFLOPs.
# Weights: in the official repository's Google Drive folders.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="msvmamba_tiny", drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

# UPerNet on msvmamba_micro, 160 000 steps: 41.67 M parameters, 875 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 45.1, 45.4 with TTA; 42 M, 875 GFLOPs.
# Weights: in the official repository's Google Drive folders.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="msvmamba_micro", drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

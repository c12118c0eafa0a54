# UPerNet on vssd_micro, 160 000 steps: 42.38 M parameters, 893 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 45.6, 46.0 with TTA; 42 M, 893 GFLOPs.
# The drop path is that of the detectors.
# Weights: https://huggingface.co/YuhengSSS/VSSD/resolve/main/upernet_vssd_final_4xb4-160k_ade20k-512x512_micro.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512_tta3.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vssd_micro", drop_path_rate=0.1),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vssd))

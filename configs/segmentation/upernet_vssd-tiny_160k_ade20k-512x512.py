# UPerNet on vssd_tiny, 160 000 steps: 54.07 M parameters, 941 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 47.9, 48.7 with TTA; 53 M, 941 GFLOPs.
# The drop path is that of the detectors.
# Weights: https://huggingface.co/YuhengSSS/VSSD/resolve/main/upernet_vssd_4xb4-160k_ade20k-512x512_tiny.pth
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512_tta3.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="vssd_tiny", drop_path_rate=0.2),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_vssd))

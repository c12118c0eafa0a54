# UPerNet on spatialmamba_tiny, 160 000 steps: 56.54 M parameters, 937 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 48.6, 49.4 with TTA; 57 M, 936 GFLOPs.
# The drop path is that of the detectors.
# Weights: https://drive.google.com/file/d/1ngRweMh6vLjfZ43fb_o_ZyHs6psxb6Ix/view
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512_tta3.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="spatialmamba_tiny", drop_path_rate=0.2),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_spatialmamba))

# UPerNet on spatialmamba_base, 160 000 steps: 127.40 M parameters, 1176 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 51.8, 52.6 with TTA; 127 M, 1176 GFLOPs.
# The drop path is that of the detectors.
# Weights: https://drive.google.com/file/d/1DLSC20TiSfzWrdgLRSdgrhnDn79nruB6/view
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512_tta3.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="spatialmamba_base", drop_path_rate=0.5),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_spatialmamba))

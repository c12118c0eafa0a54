# UPerNet on groupmamba_tiny, 160 000 steps: 50.60 M parameters, 941 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 48.6, 49.2 with TTA; 49 M, 955 GFLOPs.
# The recipe was not published: this is VMamba's, with the drop path of the ImageNet training.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="groupmamba_tiny", drop_path_rate=0.05),
    decode_head=dict(in_channels=[64, 128, 348, 448]),
    auxiliary_head=dict(in_channels=348),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_groupmamba))

# UPerNet on efficientvmamba_base, 160 000 steps: 65.37 M parameters, 930 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 46.5, 47.3 with TTA; 65 M, 930 GFLOPs.
# The recipe was not published: this is VMamba's.
# The figures are from secondary sources, not checked against the paper.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/ade20k_512.py",
    "_base_/upernet.py",
    "_base_/schedule_160k.py",
    "../_base_/weight_decay.py",
]

model = dict(
    backbone=dict(model_name="efficientvmamba_base", drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

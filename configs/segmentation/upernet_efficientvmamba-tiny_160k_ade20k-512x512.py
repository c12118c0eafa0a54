# UPerNet on efficientvmamba_tiny, 160 000 steps: 14.49 M parameters, 230 GFLOPs at 2048 x 512 pixels.
# Published for ADE20K val: mIoU 38.9, 39.3 with TTA; 14 M, 230 GFLOPs.
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

# The head is 512 wide elsewhere; with this width the published size and FLOPs come out.
model = dict(
    backbone=dict(model_name="efficientvmamba_tiny", drop_path_rate=0.2),
    decode_head=dict(in_channels=[48, 96, 192, 384], channels=256),
    auxiliary_head=dict(in_channels=192),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

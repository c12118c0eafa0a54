# UPerNet on vim_tiny_patch16_224, 60 000 steps.
# The maps are what the mixers of the blocks add to the stream.
# The official layer decay reaches the patches and the position embeddings alone.
_base_ = ["_base_/upernet_vim_60k_ade20k-512x512.py"]

width, early = 192, 0.92**25
model = dict(
    backbone=dict(model_name="vim_tiny_patch16_224", feature_maps="mixer"),
    neck=dict(embed_dim=width),
    decode_head=dict(in_channels=[width] * 4, channels=width),
    auxiliary_head=dict(in_channels=width),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=0.1),
    paramwise_cfg=dict(custom_keys={name: dict(lr_mult=early) for name in ("stem", "stem.conv.bias", "pos_embed")}),
)
del width, early

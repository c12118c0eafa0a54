# UPerNet on vim_small_patch16_224, 60 000 steps.
# The net rotates its stream and does not halve the sum of its directions, as published; the weights that can be
# downloaded were trained otherwise. The maps are the stream as the next block sees it.
# The official layer decay reaches the patches and the position embeddings alone.
_base_ = ["_base_/upernet_vim_60k_ade20k-512x512.py"]

width, early = 384, 0.95**25
model = dict(
    backbone=dict(model_name="vim_small_patch16_224", rope=True, halve=False, feature_maps="rotated"),
    neck=dict(embed_dim=width),
    decode_head=dict(in_channels=[width] * 4, channels=width),
    auxiliary_head=dict(in_channels=width),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={name: dict(lr_mult=early) for name in ("stem", "stem.conv.bias", "pos_embed")}),
)
del width, early

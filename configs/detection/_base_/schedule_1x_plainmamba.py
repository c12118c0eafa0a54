# PlainMamba's, which is ViT-Adapter's: half the warm-up, and biases are not decayed either.
_base_ = ["schedule_1x.py"]

spared = dict(decay_mult=0.0)
optim_wrapper = dict(
    constructor="FamilyDecayConstructor",
    # The longest name that fits decides, and the family's "stem.norm" would take this bias.
    paramwise_cfg=dict(custom_keys={"bias": spared, "level_embed": spared, "stem.norm.bias": spared}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
del spared

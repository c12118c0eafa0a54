# As schedule_160k.py. The decoder learns ten times as fast as the backbone, and all of it decays.
_base_ = ["schedule_160k.py"]

optim_wrapper = dict(
    constructor="FamilyDecayConstructor", paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0)))
)

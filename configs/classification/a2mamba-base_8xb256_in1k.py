# A2Mamba-B, tested on the central 224 of 235 pixels.
_base_ = ["_base_/in1k_300e_a2mamba_large.py"]

model = dict(model=dict(name="a2mamba_base", drop_path_rate=0.4))
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.95)))
test_dataloader = val_dataloader
custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=1.5, begin_epoch=75)]

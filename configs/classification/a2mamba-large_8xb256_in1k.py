# A2Mamba-L, tested on the central 224 of 229 pixels.
_base_ = ["_base_/in1k_300e_a2mamba_large.py"]

model = dict(model=dict(name="a2mamba_large", drop_path_rate=0.5))
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.975)))
test_dataloader = val_dataloader
custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=2.0, begin_epoch=75)]

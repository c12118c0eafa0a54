# SegMAN-B, tested on the central 224 of 235 pixels.
_base_ = ["_base_/in1k_300e_segman.py"]

model = dict(model=dict(name="segman_base", drop_path_rate=0.3))
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.95)))
test_dataloader = val_dataloader

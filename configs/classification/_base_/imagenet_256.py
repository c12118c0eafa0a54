# ImageNet-1k at 256 pixels, otherwise as imagenet_224.py.
_base_ = ["imagenet_224.py"]

train_dataloader = dict(dataset=dict(transform=dict(input_size=256)))
# Resize to 292, then the central 256: the share of 224 in 256, rounded as the official code does.
val_dataloader = dict(dataset=dict(transform=dict(input_size=256, crop_pct=224 / 256)))
test_dataloader = dict(dataset=dict(transform=dict(input_size=256, crop_pct=224 / 256)))

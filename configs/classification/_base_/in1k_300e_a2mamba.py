# A2Mamba's training on ImageNet-1k, to which a leaf adds MESA.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e_a2mamba.py", "classifier.py"]

train_dataloader = dict(batch_size=256, dataset=dict(transform=dict(interpolation="random")))
# Resize to 248, then the central 224.
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.9)))
test_dataloader = val_dataloader

# The batch norms are synchronised; without several processes or without GPUs the runner makes them plain ones.
sync_bn = "torch"

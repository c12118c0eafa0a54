# SegMAN's training on ImageNet-1k. The augmentation was not published; it is A2Mamba's, by the same group.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e_segman.py", "classifier.py"]

train_dataloader = dict(batch_size=256, dataset=dict(transform=dict(interpolation="random")))
# Resize to 248, then the central 224.
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.9)))
test_dataloader = val_dataloader

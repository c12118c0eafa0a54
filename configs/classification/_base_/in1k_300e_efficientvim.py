# EfficientViM's training on ImageNet-1k, with MESA.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e_efficientvim.py", "classifier.py"]

train_dataloader = dict(batch_size=256)
custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=1.0, begin_epoch=75)]

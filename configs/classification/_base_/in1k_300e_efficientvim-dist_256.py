# EfficientViM's training on ImageNet-1k at 256 pixels, with a teacher.
_base_ = ["default_runtime.py", "imagenet_256.py", "schedule_300e_efficientvim.py", "classifier_distilled.py"]

train_dataloader = dict(batch_size=256)

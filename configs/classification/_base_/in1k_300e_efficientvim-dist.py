# EfficientViM's training on ImageNet-1k, with a teacher.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e_efficientvim.py", "classifier_distilled.py"]

train_dataloader = dict(batch_size=256)

# EfficientVMamba's training on ImageNet-1k. Drop path and augmentation are those of the training log; the repository's
# yaml says drop path 0.2.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e_efficientvmamba.py", "classifier.py"]

model = dict(model=dict(drop_path_rate=0.1), mixup=dict(mixup_alpha=0.2))
train_dataloader = dict(dataset=dict(transform=dict(color_jitter=None, auto_augment="rand-m9-mstd0.5")))

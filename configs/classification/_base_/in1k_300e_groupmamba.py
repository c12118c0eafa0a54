# GroupMamba's training on ImageNet-1k: VMamba's, with a teacher.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e.py", "classifier_distilled.py"]

model = dict(model=dict(drop_path_rate=0.05))

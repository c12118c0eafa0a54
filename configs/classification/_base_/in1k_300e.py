# The official VMamba training on ImageNet-1k, which several families share.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e.py", "classifier.py"]

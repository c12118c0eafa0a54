# HRVMamba's training on ImageNet-1k: VMamba's at 256 pixels, in bfloat16 (add --amp).
_base_ = ["default_runtime.py", "imagenet_256.py", "schedule_300e.py", "classifier.py"]

# The whole picture is tested.
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=1.0)))
test_dataloader = dict(dataset=dict(transform=dict(crop_pct=1.0)))

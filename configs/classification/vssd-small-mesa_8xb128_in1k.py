# vssd_small: 40.08 M parameters, 7.366 GFLOPs at 224 pixels; published ImageNet-1k top-1 84.5 % with MESA.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e_lr6e-4.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vssd_small", pretrained=False, num_classes=1000, drop_path_rate=0.4),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=1.5, start=0.25)]

# vssd_base: 88.82 M parameters, 16.066 GFLOPs at 224 pixels; published ImageNet-1k top-1 85.4 % with MESA.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e_lr6e-4.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vssd_base", pretrained=False, num_classes=1000, drop_path_rate=0.6),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=2.0, start=0.25)]

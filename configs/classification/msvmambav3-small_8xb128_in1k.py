# msvmambav3_small: 50.22 M parameters, 8.77 GFLOPs at 224 pixels; published ImageNet-1k top-1 84.1 %.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="msvmambav3_small", pretrained=False, num_classes=1000, drop_path_rate=0.4),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

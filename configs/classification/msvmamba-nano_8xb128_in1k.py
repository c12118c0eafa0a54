# msvmamba_nano: 6.86 M parameters, 0.88 GFLOPs at 224 pixels; published ImageNet-1k top-1 77.3 %.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="msvmamba_nano", pretrained=False, num_classes=1000, drop_path_rate=0.2),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

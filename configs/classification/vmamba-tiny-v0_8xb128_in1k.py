# vmamba_tiny_v0: 22.89 M parameters, 5.63 GFLOPs at 224 pixels; published ImageNet-1k top-1 82.2 %.
# The released weights carry drop path 0.1 in their name and are the raw ones, not the average.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vmamba_tiny_v0", pretrained=False, num_classes=1000, drop_path_rate=0.2),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

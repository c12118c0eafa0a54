# vmamba_base_m2: 67.53 M parameters. Its authors never trained it: there is no published top-1.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vmamba_base_m2", pretrained=False, num_classes=1000, drop_path_rate=0.3),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

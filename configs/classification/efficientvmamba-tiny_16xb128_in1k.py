# efficientvmamba_tiny: 6.49 M parameters, 0.81 GFLOPs at 224 pixels; published ImageNet-1k top-1 76.5 %.
# Drop path and augmentation are those of the training log; the repository's yaml says drop path 0.2.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e_efficientvmamba.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="efficientvmamba_tiny", pretrained=False, num_classes=1000, drop_path_rate=0.1),
    mixup=dict(mixup_alpha=0.2, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

train_dataloader = dict(
    batch_size=128,
    dataset=dict(transform=dict(color_jitter=None, auto_augment="rand-m9-mstd0.5")),
)

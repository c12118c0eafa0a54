# A timm model for ImageNet's 1000 classes, with the mixing and smoothing of DeiT's recipe; a leaf names it.
model = dict(
    type="TimmClassifier",
    model=dict(pretrained=False, num_classes=1000),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

# groupmamba_small: 34.78 M parameters, 7.23 GFLOPs at 224 pixels; published ImageNet-1k top-1 83.9 %.
# The parameters include the distillation head's.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="groupmamba_small", pretrained=False, num_classes=1000, drop_path_rate=0.05),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
    # DeiT's teacher, 84 M parameters; its weights are downloaded when training starts.
    distillation=dict(
        teacher=dict(name="regnety_160.deit_in1k", pretrained=True, num_classes=1000),
        kind="hard",
        alpha=0.5,
        tau=1.0,
    ),
)

# vssm_efficientvim_m4_dist: 21.18 M parameters, 1.112 GFLOPs at 256 pixels; published ImageNet-1k top-1 80.7 %.
# The parameters include the distillation heads'.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_256.py", "_base_/schedule_300e_efficientvim.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vssm_efficientvim_m4_dist", pretrained=False, num_classes=1000),
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

train_dataloader = dict(batch_size=256)

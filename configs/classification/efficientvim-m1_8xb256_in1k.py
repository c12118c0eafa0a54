# vssm_efficientvim_m1: 6.68 M parameters, 0.239 GFLOPs at 224 pixels; published ImageNet-1k top-1 72.9 %.
# 73.5 % after 450 epochs.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e_efficientvim.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vssm_efficientvim_m1", pretrained=False, num_classes=1000),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

train_dataloader = dict(batch_size=256)

custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=1.0, begin_epoch=75)]

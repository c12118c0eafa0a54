# spatialmamba_base: 95.75 M parameters, 15.80 GFLOPs at 224 pixels; published ImageNet-1k top-1 85.3 %.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="spatialmamba_base", pretrained=False, num_classes=1000, drop_path_rate=0.5),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

# The official dt bias has one dimension and is not decayed.
optim_wrapper = dict(paramwise_cfg=dict(no_weight_decay=("dt_projs_bias",)))

custom_hooks = [*_base_.custom_hooks, dict(type="MESAHook", weight=2.0, start=0.25)]

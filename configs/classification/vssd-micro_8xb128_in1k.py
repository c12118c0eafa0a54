# vssd_micro: 13.51 M parameters, 2.306 GFLOPs at 224 pixels; published ImageNet-1k top-1 82.5 %.
# The official yaml says drop path 0.1, under a key that its code does not read; 0.2 is what the code passes.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e.py"]

model = dict(
    type="TimmClassifier",
    model=dict(name="vssd_micro", pretrained=False, num_classes=1000, drop_path_rate=0.2),
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch"),
    label_smoothing=0.1,
)

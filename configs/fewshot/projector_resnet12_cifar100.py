# CIFAR-100: 60 base classes, then eight sessions of five classes with five images each.
# For numbers to lay beside published ones take the lists of CEC: train_dataloader.dataset.split=dict(lists=FOLDER), and
# in the test data beside it `of`, the training images. Without, the shots are drawn.
# Assumed: 200 epochs for the authors' 50 of a data set repeated four times; flips and shifted crops.
_base_ = ["_base_/projector.py"]

model = dict(
    model=dict(name="resnet12"),
    projector=dict(out_channels=640, size=2, mixer="sequence", residual_proj=False),
    classes=100,
    base_classes=60,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8, switch_prob=0.5),
)
split = dict(base=60, ways=5, sessions=8, shots=5)
data = dict(type="TimmDataset", name="torch/cifar100", env="VSSM_DATA", default_root="data")
cifar = dict(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
train_dataloader = dict(
    dataset=dict(
        split=split,
        dataset=dict(
            **data,
            split="train",
            transform=dict(
                **cifar, input_size=32, is_training=True, scale=(0.6, 1.0), color_jitter=None, interpolation="bicubic"
            ),
        ),
    )
)
evaluated = dict(
    dataset=dict(
        split=split,
        dataset=dict(**data, split="validation", transform=dict(**cifar, input_size=32, crop_pct=1.0)),
    )
)
val_dataloader = evaluated
test_dataloader = evaluated

optim_wrapper = dict(optimizer=dict(lr=0.25))
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=0.0025, by_epoch=True, end=190, T_max=190, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=200, val_interval=10)
incremental = dict(
    lr=0.25,
    steps=200,
    mix_probability=0.75,
    suppress_base=100.0,
    suppress_new=1e-5,
    separate_new=0.001,
)
del data, cifar, evaluated

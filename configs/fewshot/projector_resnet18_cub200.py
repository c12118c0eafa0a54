# CUB-200: 100 base classes, then ten sessions of ten classes with five images each, on ImageNet's ResNet-18.
# The data: <root>/train/<class>/*.jpg and <root>/val/<class>/*.jpg, where <root> is the environment variable VSSM_DATA.
# For numbers to lay beside published ones take the lists of CEC: train_dataloader.dataset.split=dict(lists=FOLDER), and
# in the test data beside it `of`, the training images. Without, the shots are drawn.
# Assumed: 80 epochs for the authors' 20 of a data set repeated four times; flips and crops. The authors freeze the
# first stage and its norms; here its parameters do not move, but its norms follow the data.
_base_ = ["_base_/projector.py"]

model = dict(
    model=dict(name="resnet18", pretrained=True),
    projector=dict(out_channels=1024, size=7, mixer="map", detach=False),
    classes=200,
    base_classes=100,
)
split = dict(base=100, ways=10, sessions=10, shots=5)
data = dict(type="ImageFolder", env="VSSM_DATA", default_root="data/cub200")
train_dataloader = dict(
    dataset=dict(
        split=split,
        dataset=dict(
            **data,
            split="train",
            transform=dict(
                input_size=224, is_training=True, scale=(0.2, 1.0), color_jitter=None, interpolation="bicubic"
            ),
        ),
    )
)
evaluated = dict(
    dataset=dict(
        split=split,
        dataset=dict(**data, split="val", transform=dict(input_size=224, crop_pct=0.875, interpolation="bicubic")),
    )
)
val_dataloader = evaluated
test_dataloader = evaluated

optim_wrapper = dict(
    optimizer=dict(lr=0.2),
    paramwise_cfg=dict(
        custom_keys={
            "backbone": dict(lr_mult=0.1),
            "backbone.conv1": dict(lr_mult=0.0),
            "backbone.bn1": dict(lr_mult=0.0),
            "backbone.layer1": dict(lr_mult=0.0),
        }
    ),
)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min_ratio=0.1, by_epoch=True, end=80, T_max=80, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=80, val_interval=5)
incremental = dict(
    lr=0.05,
    steps=[200, 210, 220, 230, 240, 250, 260, 270, 280, 290],
    layers=3,
    first_branch_lr=0.2,
    base_copies=[1, 1, 2, 2, 3, 3, 1, 1, 1, 1],
    old_copies=10,
    balanced=False,
    mix_probability=0.5,
    suppress_base=100.0,
    suppress_new=10.0,
    separate_base=0.001,
    separate_new=0.001,
)
del data, evaluated

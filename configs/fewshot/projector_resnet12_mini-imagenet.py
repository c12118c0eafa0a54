# mini-ImageNet: 60 base classes, then eight sessions of five classes with five images each, at 84 pixels.
# The data: <root>/train/<class>/*.jpg and <root>/val/<class>/*.jpg, where <root> is the environment variable VSSM_DATA.
# For numbers to lay beside published ones take the lists of CEC: train_dataloader.dataset.split=dict(lists=FOLDER), and
# in the test data beside it `of`, the training images. Without, the shots are drawn.
# Assumed: 50 epochs of ten passes each, as the authors' data set is repeated; flips and crops.
_base_ = ["_base_/projector.py"]

model = dict(
    model=dict(name="resnet12"),
    projector=dict(out_channels=512, size=5, mixer="sequence"),
    classes=100,
    base_classes=60,
    balanced=True,
)
split = dict(base=60, ways=5, sessions=8, shots=5)
data = dict(type="ImageFolder", env="VSSM_DATA", default_root="data/mini-imagenet")
train_dataloader = dict(
    dataset=dict(
        split=split,
        dataset=dict(
            **data,
            split="train",
            transform=dict(
                input_size=84, is_training=True, scale=(0.2, 1.0), color_jitter=None, interpolation="bicubic"
            ),
        ),
    )
)
evaluated = dict(
    dataset=dict(
        split=split,
        dataset=dict(**data, split="val", transform=dict(input_size=84, crop_pct=0.913, interpolation="bicubic")),
    )
)
val_dataloader = evaluated
test_dataloader = evaluated

optim_wrapper = dict(optimizer=dict(lr=0.25))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=3000),
    dict(type="MultiStepLR", by_epoch=True, milestones=[200, 300, 350, 400, 450], gamma=0.25),
]
train_cfg = dict(by_epoch=True, max_epochs=500, val_interval=10)
incremental = dict(
    lr=0.01,
    steps=[100, 110, 120, 130, 140, 150, 160, 170],
    base_copies=[1, 2, 3, 4, 5, 6, 7, 8],
    old_copies=10,
    mix_probability=0.3,
    suppress_base=100.0,
    separate_new=0.5,
)
del data, evaluated

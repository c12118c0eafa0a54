# ImageNet-1k at 224 pixels, with the augmentation of the official VMamba training (Swin's).
# The data: <root>/train/<class>/*.JPEG and <root>/val/<class>/*.JPEG, where <root> is `root` below or, while that is
# None, the environment variable VSSM_IMAGENET, or else data/imagenet.
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    # Workers are started anew each epoch, because that is when they are seeded.
    persistent_workers=False,
    pin_memory=True,
    # Mixup pairs the images of a batch: no odd remainder.
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        root=None,
        split="train",
        transform=dict(
            input_size=224,
            is_training=True,
            interpolation="bicubic",
            color_jitter=0.4,
            auto_augment="rand-m9-mstd0.5-inc1",
            re_prob=0.25,
            re_mode="pixel",
            re_count=1,
        ),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        root=None,
        split="val",
        # Resize to 256, then the central 224.
        transform=dict(input_size=224, is_training=False, interpolation="bicubic", crop_pct=224 / 256),
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator

# How every recipe here draws its training images.
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    # Workers are started anew each epoch, because that is when they are seeded.
    persistent_workers=False,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
)

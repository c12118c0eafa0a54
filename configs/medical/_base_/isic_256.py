# ISIC skin lesions at 256 pixels. The data: <root>/{train,val}/{images,masks}, where <root> is `root` of the config or,
# while that is None, the environment variable VSSM_ISIC, or else data/isic. `val` is the authors' own 30 % (their lists
# were not published as text), which they test on; users who take the official ISIC split report lower figures.
#
# protocol: "validation" chooses the checkpoint by every tenth image of train; "published" by the test images:
#   --cfg-options train_dataloader.dataset.protocol=published val_dataloader.dataset.protocol=published
# (The authors take the lowest loss on them, here it is the highest Dice.)
_base_ = ["slices.py"]

train_dataloader = dict(
    dataset=dict(
        type="ISIC",
        root=None,
        split="train",
        protocol="validation",
        transform=dict(size=256, augment=True),
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ISIC", root=None, split="val", protocol="validation", transform=dict(size=256)),
)
test_dataloader = dict(
    batch_size=32,
    num_workers=8,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ISIC", root=None, split="test", transform=dict(size=256)),
)
val_evaluator = dict(type="PooledMetric")
test_evaluator = dict(type="PooledMetric")
val_cfg = {}
test_cfg = {}

# ACDC cardiac MRI in MT-UNet's files, slices of 224 pixels. The data: <root>/{train,valid,test}, where <root> is `root`
# below or, while that is None, the environment variable VSSM_ACDC, or else data/acdc.
#
# protocol: "validation" chooses the checkpoint by the ten patients that the split has for it; "published" chooses by
# the test volumes, as the published figures were made: --cfg-options val_dataloader.dataset.protocol=published
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    # Workers are started anew each epoch, because that is when they are seeded.
    persistent_workers=False,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ACDC",
        root=None,
        split="train",
        transform=dict(size=224, augment="msvm_unet", mean=0.5, std=0.5),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
    dataset=dict(type="ACDC", root=None, split="val", protocol="validation"),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
    dataset=dict(type="ACDC", root=None, split="test"),
)
# empty: "transunet" scores empty masks as the published figures do, "clean" leaves them out.
val_evaluator = dict(type="VolumeMetric", measures=("dice",), empty="transunet")
test_evaluator = dict(type="VolumeMetric", measures=("dice", "hd95", "jaccard", "asd"), empty="transunet")
val_cfg = dict(type="VolumeValLoop", size=224, mean=0.5, std=0.5, slices=16)
test_cfg = dict(type="VolumeTestLoop", size=224, mean=0.5, std=0.5, slices=16)

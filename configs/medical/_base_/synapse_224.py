# Synapse multi-organ CT in TransUNet's files, slices of 224 pixels. The data: <root>/{train_npz,test_vol_h5}, where
# <root> is `root` below or, while that is None, the environment variable VSSM_SYNAPSE, or else data/synapse.
#
# protocol: "validation" chooses the checkpoint by three of the 18 training cases. "published" trains on all 18 and
# chooses by the test volumes, as the published figures were made:
#   --cfg-options train_dataloader.dataset.protocol=published val_dataloader.dataset.protocol=published
# label_order: "auto", "transunet", "btcv8" or "btcv", see vssm.medical.data.Synapse.
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    # Workers are started anew each epoch, because that is when they are seeded.
    persistent_workers=False,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="Synapse",
        root=None,
        split="train",
        protocol="validation",
        label_order="auto",
        transform=dict(size=224, augment="transunet", mean=0.0, std=1.0),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
    dataset=dict(type="Synapse", root=None, split="val", protocol="validation", label_order="auto"),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
    dataset=dict(type="Synapse", root=None, split="test", label_order="auto"),
)
# empty: "transunet" scores empty masks as the published figures do, "clean" leaves them out.
val_evaluator = dict(type="VolumeMetric", measures=("dice",), empty="transunet")
test_evaluator = dict(type="VolumeMetric", measures=("dice", "hd95", "jaccard", "asd"), empty="transunet")
val_cfg = dict(type="VolumeValLoop", size=224, mean=0.0, std=1.0, slices=16)
test_cfg = dict(type="VolumeTestLoop", size=224, mean=0.0, std=1.0, slices=16)

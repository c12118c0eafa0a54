# Synapse multi-organ CT in TransUNet's files, slices of 224 pixels. The data: <root>/{train_npz,test_vol_h5}, where
# <root> is `root` below or, while that is None, the environment variable VSSM_SYNAPSE, or else data/synapse.
#
# protocol: "validation" chooses the checkpoint by three of the 18 training cases. "published" trains on all 18 and
# chooses by the test volumes, as the published figures were made:
#   --cfg-options train_dataloader.dataset.protocol=published val_dataloader.dataset.protocol=published
# label_order: "auto", "transunet", "btcv8" or "btcv", see vssm.medical.data.Synapse.
_base_ = ["volumes_224.py"]

train_dataloader = dict(
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
    dataset=dict(type="Synapse", root=None, split="val", protocol="validation", label_order="auto"),
)
test_dataloader = dict(dataset=dict(type="Synapse", root=None, split="test", label_order="auto"))
val_cfg = dict(mean=0.0, std=1.0)
test_cfg = dict(mean=0.0, std=1.0)

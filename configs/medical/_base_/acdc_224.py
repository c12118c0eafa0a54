# ACDC cardiac MRI in MT-UNet's files, slices of 224 pixels. The data: <root>/{train,valid,test}, where <root> is `root`
# below or, while that is None, the environment variable VSSM_ACDC, or else data/acdc.
#
# protocol: "validation" chooses the checkpoint by the ten patients that the split has for it; "published" chooses by
# the test volumes, as the published figures were made: --cfg-options val_dataloader.dataset.protocol=published
_base_ = ["volumes_224.py"]

train_dataloader = dict(
    dataset=dict(
        type="ACDC",
        root=None,
        split="train",
        transform=dict(size=224, augment="msvm_unet", mean=0.5, std=0.5),
    ),
)
val_dataloader = dict(dataset=dict(type="ACDC", root=None, split="val", protocol="validation"))
test_dataloader = dict(dataset=dict(type="ACDC", root=None, split="test"))
val_cfg = dict(mean=0.5, std=0.5)
test_cfg = dict(mean=0.5, std=0.5)

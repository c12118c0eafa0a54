# A 3-D U-Net of ours on ACDC cardiac MRI, in the files that the slices are trained from; see _base_/acdc_224.py for the
# folder and the protocol. Slices lie five to ten times further apart than their pixels, so the first two stages halve
# (H, W) alone.
_base_ = ["_base_/volumes_3d.py"]

patch = (8, 192, 192)
mean, std = None, None  # each volume's own
data = dict(type="ACDC", root=None)
model = dict(network=dict(num_classes=4, encoder_options=dict(strides=[(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)])))
train_dataloader = dict(
    dataset=dict(
        dataset=dict(**data, split="train", volumes=True),
        patch=patch,
        per_volume=4,
        mirror=(False, True, True),
        turn=True,
        mean=mean,
        std=std,
    ),
)
val_dataloader = dict(dataset=dict(**data, split="val", protocol="validation"))
test_dataloader = dict(dataset=dict(**data, split="test"))
val_cfg = dict(patch=patch, mean=mean, std=std)
test_cfg = dict(patch=patch, mean=mean, std=std)

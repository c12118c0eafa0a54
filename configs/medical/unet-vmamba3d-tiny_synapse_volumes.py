# A 3-D U-Net of ours on Synapse multi-organ CT, in the files that the slices are trained from. Folder, protocol and the
# order of the labels: see _base_/synapse_224.py. Volumes keep the spacing of the files.
_base_ = ["_base_/volumes_3d.py"]

patch = (48, 160, 160)
mean, std = 0.3, 0.3
data = dict(type="Synapse", root=None, label_order="auto")
model = dict(network=dict(num_classes=9))
train_dataloader = dict(
    dataset=dict(
        dataset=dict(**data, split="train", protocol="validation", volumes=True),
        patch=patch,
        per_volume=16,
        mean=mean,
        std=std,
    ),
)
val_dataloader = dict(dataset=dict(**data, split="val", protocol="validation"))
test_dataloader = dict(dataset=dict(**data, split="test"))
val_cfg = dict(patch=patch, mean=mean, std=std)
test_cfg = dict(patch=patch, mean=mean, std=std)

# HyMamba on the 13 organs of BTCV, in windows of 96 x 96 x 96. NIfTI files of 1.5 mm in <root>/{train,val,test}/images
# and labels; VSSM_BTCV says where. The authors' encoder: --cfg-options model.network.pretrained=mambamim_mask75.pth
# Window, spacing and classes are the authors'; they published no schedule, and this one is ours.
_base_ = ["_base_/volumes_3d.py"]

patch = (96, 96, 96)
data = dict(
    type="NiftiFolder",
    root=None,
    env="VSSM_BTCV",
    default_root="data/btcv",
    window=(-175, 250),
    classes=(
        *("background", "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach"),
        *("aorta", "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland"),
        "left adrenal gland",
    ),
    volumes=True,
)
model = dict(network=dict(_delete_=True, name="hymamba", num_classes=14, in_chans=1, pretrained=False))
train_dataloader = dict(dataset=dict(dataset=dict(**data, split="train"), patch=patch, per_volume=4))
val_dataloader = dict(dataset=dict(**data, split="val"))
test_dataloader = dict(dataset=dict(**data, split="test"))
val_cfg = dict(patch=patch)
test_cfg = dict(patch=patch)

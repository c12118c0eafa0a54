# The MNI152 brain template, whose grey and white matter a small network learns on two CPU cores: data and scores of the
# 2-D and 3-D runs. The data come offline, out of nilearn's wheel: vssm prepare mni152 data/mni152
_base_ = ["default_runtime.py"]

data = dict(
    type="NiftiFolder",
    root=None,
    env="VSSM_MNI152",
    default_root="data/mni152/nifti",
    classes=("background", "grey matter", "white matter"),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
    dataset=dict(**data, split="val"),
)
# The slab that nothing was trained or chosen on.
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
    dataset=dict(**data, split="test"),
)
val_evaluator = dict(type="VolumeMetric", measures=("dice",))
test_evaluator = dict(type="VolumeMetric", measures=("dice", "hd95"))

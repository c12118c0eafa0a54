# A 3-D U-Net of ours on patches of volumes, evaluated on whole volumes in windows; a leaf says the data, the patch and
# the classes. AdamW, a cosine without warm-up; nothing was published for these runs.
_base_ = ["default_runtime.py"]

model = dict(
    type="UNetSegmentor",
    # VMamba's blocks with scans in six directions, MONAI's blocks as decoder. There are no published weights.
    network=dict(decoder="unet", encoder="vmamba3d_tiny", spatial_dims=3, in_chans=1, norm_name="batch"),
    loss=dict(type="CEDiceLoss", ce_weight=0.5, dice_weight=0.5),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=False,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    # The volumes are kept in memory.
    dataset=dict(type="VolumePatches", foreground=0.67, intensity=0.1, noise=0.05),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="list_collate"),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="VolumeMetric", measures=("dice",), empty="transunet")
test_evaluator = dict(type="VolumeMetric", measures=("dice", "hd95", "jaccard", "asd"), empty="transunet")
val_cfg = dict(type="WindowValLoop", overlap=0.25)
test_cfg = dict(type="WindowTestLoop", overlap=0.5)

optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=5e-4, weight_decay=1e-2), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=0, end=300, T_max=300, convert_to_iter_based=True)
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=20)

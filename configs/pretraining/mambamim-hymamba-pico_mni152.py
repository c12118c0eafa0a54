# A small HyMamba learns to fill in masked blocks of the MNI152 brain template, on two CPU cores and without labels.
# The data come offline, out of nilearn's wheel: vssm prepare mni152 data/mni152
_base_ = ["_base_/default_runtime.py"]

model = dict(
    type="MaskedPretraining",
    network=dict(encoder="hymamba_pico", spatial_dims=3, in_chans=1),
    mask_ratio=0.6,
    decoder_dim=64,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="VolumePatches",
        dataset=dict(
            type="NiftiFolder",
            root=None,
            split="train",
            env="VSSM_MNI152",
            default_root="data/mni152/nifti",
            labels=None,
            volumes=True,
        ),
        patch=(16, 64, 64),
        per_volume=64,
        foreground=0.0,
        mirror=True,
        turn=True,
        mean=0.25,
        std=0.25,
    ),
)
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=2, end=20, T_max=18, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20)

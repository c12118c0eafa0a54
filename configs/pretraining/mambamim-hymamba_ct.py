# MambaMIM's pre-training of HyMamba on CT volumes without labels, after the official code (arXiv 2408.08070).
# The volumes: NIfTI files of 1.5 mm, RAS, in <root>/train/images; VSSM_CT says where. 64 crops at once, on 4 GPUs.
_base_ = ["_base_/default_runtime.py"]

model = dict(
    type="MaskedPretraining",
    network=dict(encoder="hymamba", spatial_dims=3, in_chans=1),
    mask_ratio=0.75,
    decoder_dim=768,
)
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    # Deviates from the official crops, which have some tissue in their middle and are mirrored with the probabilities
    # 0.2, 0.2 and 0.1: without labels these are anywhere, and mirrored in one of two.
    dataset=dict(
        type="VolumePatches",
        dataset=dict(
            type="NiftiFolder",
            root=None,
            env="VSSM_CT",
            default_root="data/ct",
            labels=None,
            window=(-175, 250),
            volumes=True,
        ),
        patch=(96, 96, 96),
        per_volume=4,
        foreground=0.0,
        mirror=True,
        cache=False,
    ),
)
# One group, biases and norms too; the weight decay rises by a cosine from 0.04 to 0.2.
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.04), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.005, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    # To a thousandth of the peak.
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-7,
        by_epoch=True,
        begin=40,
        end=100,
        T_max=60,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingParamScheduler",
        param_name="weight_decay",
        eta_min=0.2,
        by_epoch=True,
        begin=0,
        end=100,
        T_max=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=100)

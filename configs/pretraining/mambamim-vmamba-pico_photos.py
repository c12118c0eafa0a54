# A small VMamba learns to fill in masked squares of photographs, on two CPU cores and without labels.
# The photographs: any pictures in one folder, <root>/train/<any name>/*.jpg; VSSM_PHOTOS says where <root> is.
_base_ = ["_base_/default_runtime.py"]

model = dict(type="MaskedPretraining", network=dict(encoder="vmamba_pico"), mask_ratio=0.6, decoder_dim=128)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        root=None,
        split="train",
        env="VSSM_PHOTOS",
        default_root="data/photos",
        transform=dict(input_size=128, is_training=True, scale=(0.3, 1.0), color_jitter=None),
    ),
)
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=5, end=50, T_max=45, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=50)

# VM-UNet's recipe, also MHS-UNet's: AdamW on every parameter (norms and biases are decayed too), no warm-up, and a
# cosine of T_max 50 epochs over 300, so that the rate goes down and up three times.
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-2, betas=(0.9, 0.999), eps=1e-8)
)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=0, end=300, T_max=50)]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)

# MSVM-UNet's recipe: AdamW on every parameter (norms and biases are decayed too), cosine over 300 epochs without
# warm-up, the encoder frozen for ten epochs, an end when the training loss has not fallen for 15.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=5e-4, weight_decay=1e-3, betas=(0.9, 0.999)))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=0, end=300, T_max=300)]
# Validation every 20 epochs, which is also how the published checkpoint was chosen.
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=20)
custom_hooks = [
    dict(type="FreezeEncoderHook", epochs=10),
    dict(type="TrainLossHook", patience=15),
]
# DDP finds the frozen parameters this way.
find_unused_parameters = True

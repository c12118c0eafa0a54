# What the detector and the segmentor of handwritten digits share: five epochs of AdamW on two CPU cores. A leaf says
# the rate.
_base_ = ["../classification/_base_/default_runtime.py"]
custom_imports = dict(imports=["vssm.mm"], allow_failed_imports=False)

epochs = 5
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="AdamW", weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
)
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# HRVMamba's official recipe: 210 epochs of AdamW at 256 crops a step, a tenth of the rate from epoch 170 and from 200.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.01, betas=(0.9, 0.999)),
    # What is decayed was not read from the official files: biases and one-dimensional parameters are spared here.
    paramwise_cfg=dict(model_no_weight_decay=False, layer_decay=None),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", milestones=[170, 200], gamma=0.1, by_epoch=True, begin=0, end=210),
]
train_cfg = dict(by_epoch=True, max_epochs=210, val_interval=10)
val_cfg = {}
test_cfg = {}

# With another total of crops a step, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=256)

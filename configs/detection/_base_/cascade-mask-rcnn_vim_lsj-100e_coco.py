# The recipe of Vim for the Cascade Mask R-CNN of ViTDet: 184 375 steps of AdamW at 64 images per step, about 100
# epochs, with layer decay and mixed precision.
_base_ = ["default_runtime.py", "coco_instance_lsj.py", "cascade-mask-rcnn_simple-pyramid.py"]

model = dict(data_preprocessor=dict(pad_size_divisor=1024))
train_cfg = dict(type="IterBasedTrainLoop", max_iters=184375, val_interval=5000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="AutoAmpOptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    # Officially norms and position embeddings are spared alone; timm's groups spare all biases too.
    paramwise_cfg=dict(layer_decay=0.837, model_no_weight_decay=False, no_weight_decay=["pos_embed"]),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=184375, milestones=[163889, 177546], gamma=0.1),
]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=5000),
)
log_processor = dict(by_epoch=False)
# 8 processes x 8 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(enable=False, base_batch_size=64)

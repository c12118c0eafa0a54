# PlainMamba's training on ImageNet-1k. Officially in float16 mixed precision for L1 (add --amp), else in float32.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e.py", "classifier.py"]

train_dataloader = dict(
    batch_size=256,
    # mmpretrain's policies of RandAugment are timm's but for details.
    dataset=dict(transform=dict(color_jitter=None)),
)
# 5e-4 per 512 images. Biases, norms and all parameters of the state space are spared, as are position embeddings.
optim_wrapper = dict(
    optimizer=dict(lr=2e-3), paramwise_cfg=dict(model_no_weight_decay=True), clip_grad=dict(max_norm=1.0)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    # To a hundredth of the rate.
    dict(
        type="CosineAnnealingLR",
        eta_min=2e-5,
        by_epoch=True,
        begin=20,
        end=300,
        T_max=280,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=2048)

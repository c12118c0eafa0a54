# Pre-train VMamba-B on ImageNet-21k from tar shards. No such run is published: epochs, batch and rate are those of
# Swin's paper (arXiv 2103.14030, section 4.1), with cosine for its linear decline. It has not been run.
# Then: vmamba-base-s1l20_8xb128_finetune-in1k.py.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/imagenet21k_shards_224.py",
    "_base_/schedule_300e.py",
    "_base_/classifier.py",
]

# The classes of the release of 2011; later ones have fewer. Another number is refused where the shards name theirs.
model = dict(model=dict(name="vmamba_base_s1l20", num_classes=21841, drop_path_rate=0.2))

optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.01))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-6,
        by_epoch=True,
        begin=5,
        end=90,
        T_max=85,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=90)
# Without an average of the weights, as in the paper.
custom_hooks = []

# 32 processes x 128 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(base_batch_size=4096)

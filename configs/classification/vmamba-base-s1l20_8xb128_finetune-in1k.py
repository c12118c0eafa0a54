# Fine-tune VMamba-B on ImageNet-1k from the checkpoint of vmamba-base-s1l20_32xb128_pretrain-in21k.py, whose classes
# are others: the classifier starts afresh. Epochs, batch and weight decay are those of Swin's paper (arXiv 2103.14030,
# section 4.1), with cosine from 2e-5 for its constant rate of 1e-5. It has not been run.
_base_ = ["_base_/default_runtime.py", "_base_/imagenet_224.py", "_base_/schedule_300e.py", "_base_/classifier.py"]

load_from = "work_dirs/vmamba-base-s1l20_32xb128_pretrain-in21k/epoch_90.pth"
load_classes = False

# Mixing helps less in a short run from good weights.
model = dict(model=dict(name="vmamba_base_s1l20", drop_path_rate=0.2), mixup=None)

optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-6,
        by_epoch=True,
        begin=1,
        end=30,
        T_max=29,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30)

# 8 processes x 128 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(base_batch_size=1024)

# Vim-S, fine-tuned with token pruning (ToP-ViM, arXiv 2409.18962) from its published weights, which are downloaded.
# Sites, share and schedule are those of the released scripts; that their rate of 5e-6 is scaled like Vim's is assumed.
_base_ = ["_base_/in1k_300e_vim.py"]

model = dict(
    model=dict(
        name="vim_small_patch16_224",
        pretrained=True,
        # Behind the blocks 5, 10 and 15, counted from 1.
        pruning=dict(sites=(4, 9, 14), keep=0.8),
    ),
)
train_dataloader = dict(batch_size=64)

# Warm-up begins, and the cosine ends, at 1e-5, above the rate that lies between them: 5e-6 per 512 images.
optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1.0,
        end_factor=0.25,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=30,
        T_max=25,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30)
# 4 processes x 64 images. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(base_batch_size=256)

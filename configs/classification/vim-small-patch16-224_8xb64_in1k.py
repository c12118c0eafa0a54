# Vim-S.
_base_ = ["_base_/in1k_300e_vim.py"]

model = dict(model=dict(name="vim_small_patch16_224", drop_path_rate=0.05))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
auto_scale_lr = dict(base_batch_size=512)

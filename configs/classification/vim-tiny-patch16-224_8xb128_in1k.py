# Vim-Ti.
_base_ = ["_base_/in1k_300e_vim.py"]

model = dict(model=dict(name="vim_tiny_patch16_224"))

# Vim-B. Its recipe was not published: this is that of Vim-S, which is a guess.
_base_ = ["vim-small-patch16-224_8xb64_in1k.py"]

model = dict(model=dict(name="vim_base_patch16_224"))

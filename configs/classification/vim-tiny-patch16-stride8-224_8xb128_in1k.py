# Vim-Ti with overlapping patches, from the published weights without overlap; they are downloaded.
_base_ = ["_base_/in1k_30e_vim-stride8.py"]

model = dict(
    model=dict(
        name="vim_tiny_patch16_stride8_224",
        pretrained=True,
        pretrained_cfg_overlay=dict(
            url="https://huggingface.co/hustvl/Vim-tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth"
        ),
    ),
)

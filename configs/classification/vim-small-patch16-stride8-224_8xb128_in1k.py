# Vim-S with overlapping patches, from the published weights without overlap; they are downloaded.
_base_ = ["_base_/in1k_30e_vim-stride8.py"]

model = dict(
    model=dict(
        name="vim_small_patch16_stride8_224",
        pretrained=True,
        pretrained_cfg_overlay=dict(
            url="https://huggingface.co/hustvl/Vim-small-midclstok/resolve/main/vim_s_midclstok_80p5acc.pth"
        ),
    ),
)

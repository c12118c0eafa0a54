"""How the official code begins a training, where timm's or PyTorch's usual start would be another."""

import re

import pytest
import timm
import torch

# (pattern of names, kind, value): a normal distribution of this deviation, a uniform one of this bound (None: that of
# PyTorch's convolutions), or a constant. "he" is a normal one of He et al. for the outputs.
TABLES = {
    "msvmamba_pico": (
        dict(dims=64, depths=(1, 1)),
        [
            (r"stages.1.blocks.0.mixer.((in|out)_proj|se.fc1).weight|head.fc.weight", "normal", 0.02),
            (r"head.fc.bias", "constant", 0),
            # The feed-forward layer starts like the convolutions it is made of officially.
            (r"stages.1.blocks.0.mlp.fc1.(weight|bias)", "uniform", 128**-0.5),
            (r"stages.1.blocks.0.mixer.x_proj.weight", "uniform", 256**-0.5),
        ],
    ),
    "efficientvmamba_tiny": (
        dict(depths=(1, 1, 1, 1)),
        [
            (r"stages.1.blocks.0.(mixer.in_proj|gate.mlp.fc1).weight", "normal", 0.02),
            (r"stages.1.downsample.reduction.weight|head.fc.weight", "normal", 0.02),
            (r"head.fc.bias|stages.1.blocks.0.gate.mlp.fc1.bias", "constant", 0),
            (r"stages.1.blocks.0.pw_conv.weight|stages.2.blocks.0.(se.fc1|conv_pw.conv).weight", "uniform", None),
        ],
    ),
    "groupmamba_pico": (
        {},
        [
            (r"stages.3.blocks.0.(mlp.dwconv|mixer.conv).weight", "he", 1),
            (r"stem.conv2.conv.weight|stages.3.downsample.conv.weight", "he", None),
            (r"stages.3.blocks.0.mixer.proj.weight", "normal", 0.02),
            (r"stages.3.blocks.0.(mlp.dwconv|mixer.(conv|proj)).bias|.*mixer.A_logs", "constant", 0),
            (r".*mixer.(skip_scale|Ds)", "constant", 1),
        ],
    ),
    "vim_pico": (
        dict(dim=64),
        [
            (r"blocks.1.mixer.in_proj.weight", "uniform", 64**-0.5),
            (r"blocks.1.mixer.out_proj.weight", "uniform", 128**-0.5 / 2),  # over the root of four blocks
            (r"head.weight|tokens.pos_embed", "normal", 0.02),
            (r"head.bias|stem.conv.bias", "constant", 0),
            (r".*(norm.weight|Ds)", "constant", 1),
        ],
    ),
    "plainmamba_pico": (
        dict(dim=64),
        [
            (r"blocks.1.mixer.((in|out)_proj.weight|x_proj.weight|dt_projs_weight)", "normal", 0.02),
            (r"blocks.1.mixer.((in|out)_proj.bias|dt_projs_bias)", "constant", 0),
            (r"head.weight", "normal", 0.01),
            (r".*Ds", "constant", 1),
        ],
    ),
    "vssm_efficientvim_m1": (
        dict(depths=(1, 1, 1)),
        [
            (r".*alpha", "constant", 1e-4),
            (r".*(\.norm\.weight|\.D|\.mix)", "constant", 1),
            (r".*\.fcs\.\d\.weight", "normal", 0.02),
            (r"stages.0.blocks.0.ffn.fc1.linear.weight", "uniform", 128**-0.5),
        ],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_initial_parameters(name):
    torch.manual_seed(0)
    options, rules = TABLES[name]
    parameters = dict(timm.create_model(name, **options).named_parameters())
    for pattern, kind, value in rules:
        found = {n: p.detach() for n, p in parameters.items() if re.fullmatch(pattern, n)}
        assert found, pattern
        for n, p in found.items():
            if kind == "constant":
                assert (p == value).all(), n
            elif kind == "uniform":
                bound = value or p[0].numel() ** -0.5
                assert 0.95 * bound < p.abs().max() <= bound, n
                assert abs(p.std() / bound - 3**-0.5) < 0.1, n
            else:
                # A kernel of groups as wide as the input has one input channel for each output.
                fan_out = p[0, 0].numel() * (value or p.shape[0]) if kind == "he" else 0
                deviation = (2 / fan_out) ** 0.5 if kind == "he" else value
                assert abs(p.std() / deviation - 1) < 0.12, n


def test_states_decay_as_the_papers_say():
    """A is -1 to -16 in Mamba's way, and random between the two in Mamba-2's."""
    mixer = timm.create_model("efficientvmamba_pico", d_state=16).stages[1].blocks[0].mixer
    assert torch.allclose(mixer.A_logs[5].exp(), torch.arange(1.0, 17))
    for block in timm.create_model("vssm_efficientvim_pico").stages[1].blocks:
        assert block.mixer.A.min() >= 1 and block.mixer.A.max() <= 16

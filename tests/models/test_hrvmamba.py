"""HRVMamba beyond its parity vectors."""

import pytest
import timm
import torch

from vssm.models.hrvmamba import FAMILY
from vssm.scans import DeformableStep

from .test_hrvmamba_parity import UNIT
from .tester import FamilyTester, Official


def early_linear(weights):
    """Linear layers as 1 x 1 convolutions."""
    return {k: v[..., None, None] if k.endswith(("in_proj.weight", "fc1.weight")) else v for k, v in weights.items()}


class TestHRVMamba(FamilyTester):
    family = FAMILY
    checkpoints = {"unit": Official("hrvmamba", "_unit", "hrvmamba_pico", UNIT)}
    layouts = [("unit", early_linear)]
    foreign = [("unit", "stage2.0.branches.0.0.op.conv2d.value_proj.weight", "projections", "value_proj")]
    refused = [
        ("hrvmamba_pico", dict(dims=(8, 16)), ("dims and depths", "(8, 16)", "(1, 1, 2)")),
        ("hrvmamba_pico", dict(dims=(8, 16, 30, 64)), ("multiple of 4", "30")),
        ("hrvmamba_pico", dict(neck_dims=(16, 32)), ("neck_dims", "4 branches", "(16, 32)")),
        ("hrvmamba_pico", dict(offset_conv=(True,)), ("offset_conv", "4 branches", "(True,)")),
        ("hrvmamba_pico", dict(maps="head"), ("'branches'", "'neck'", "'head'")),
    ]


def test_checkpoint_of_several_modules_and_blocks():
    """The official numbers of modules and of blocks in these become numbers of blocks."""
    official = Official("hrvmamba", "hrvmamba_nano", options=dict(depths=(2, 8, 4)))
    got, own = official.convert(official.weights()), official.create().state_dict()
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in own.items()}
    want = official.weights()["stage3.2.branches.1.1.norm.weight"]
    assert torch.equal(got["stages.1.blocks.5.branches.1.norm1.weight"], want)
    want = official.weights()["stage3.2.fuse_layers.2.0.1.0.weight"]
    assert torch.equal(got["stages.1.fusions.5.outputs.2.paths.0.2.conv.weight"], want)


@torch.no_grad()
def test_first_branch_alone_needs_no_other_output_of_the_last_fusion():
    """Parameters of the official backbone of pose estimation, and the map is that of the whole net."""
    whole = timm.create_model("hrvmamba_pico").eval()
    first = timm.create_model("hrvmamba_pico", features_only=True, out_indices=(0,)).eval()
    assert [n for n, _ in first.named_parameters() if ".fusions.1.outputs." in n and ".outputs.0." not in n] == []
    weights = whole.state_dict()
    first.model.load_state_dict({k: weights[k] for k in first.model.state_dict()})
    x = torch.randn(1, 3, 64, 48)
    assert torch.equal(first(x)[0], whole.forward_intermediates(x, (0,), intermediates_only=True)[0])


@torch.no_grad()
def test_maps_of_the_neck_are_features():
    net = timm.create_model("hrvmamba_pico", features_only=True, maps="neck").eval()
    assert net.feature_info.channels() == [16, 32, 64, 128] and net.feature_info.reduction() == [4, 8, 16, 32]
    x = torch.randn(1, 3, 64, 96)
    assert [tuple(m.shape[1:]) for m in net(x)] == [(16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)]


def test_deformable_step_without_steps_is_a_sum_of_nine():
    step = DeformableStep(6, 2).double()
    step.offset_mask.weight.data.zero_()
    step.offset_mask.bias.data.zero_()
    step.offset_mask.bias.data.view(-1)[:54].view(2, 27)[:, 18:] = 1.0
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    want = torch.nn.functional.avg_pool2d(x, 3, 1, 1, divisor_override=1)
    assert torch.allclose(step(x), want)
    # A step to the right by one pixel, and points that go down the columns first.
    step.offset_mask.bias.data.view(-1)[:54].view(2, 27)[:, 0:18:2] = 1.0
    step.offset_mask.bias.data.view(-1)[:54].view(2, 27)[:, 18:] = torch.tensor([0.0, 0, 1, 0, 0, 0, 0, 0, 0])
    want = torch.nn.functional.pad(x, (0, 0, 0, 1))[:, :, 1:]  # the point left and below, moved right: below
    assert torch.allclose(step(x), want)
    with pytest.raises(ValueError, match="6 channels are not divisible by 4 groups"):
        DeformableStep(6, 4)

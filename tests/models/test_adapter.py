"""The ViT-Adapter: the numbers of PlainMamba's official one, any plain net, any size of image."""

import numpy as np
import pytest
import timm
import torch

from tests import parity
from vssm.models.adapter import ViTAdapter
from vssm.models.dense import convert_features, create_features, split_backbone

RECORD = parity.load("plainmamba")["variants"]["_unit_adapter"]
# With class tokens in the middle of the patches, in front of them (one, and two), and none.
NETS = {
    "vim_pico": {},
    "plainmamba_pico": {},
    "deit_tiny_patch16_224": dict(depth=4, dynamic_img_size=True),
    "deit_tiny_distilled_patch16_224": dict(depth=4, dynamic_img_size=True),
}


def official():
    """PlainMamba's net and adapter of the record."""
    net = create_features("plainmamba_pico", out_norm=False, img_size=64, out_indices=(0, 1, 3))
    adapter = ViTAdapter(net.model, net.out_indices, num_heads=4, num_points=2, prior_width=8)
    parts = split_backbone(parity.state_dict(RECORD))
    net.load_state_dict(convert_features(parts.net, net))
    adapter.load_state_dict(parts.adapter)
    return net.eval(), adapter.eval()


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: "x".join(map(str, case["shape"])))
def test_the_official_numbers(case):
    net, adapter = official()
    both = dict(net.named_parameters()) | {f"adapter.{name}": p for name, p in adapter.named_parameters()}
    assert sum(parameter.numel() for parameter in both.values()) == RECORD["params"]
    x = parity.image(case).requires_grad_()
    maps = adapter(net.model, x)
    for i, (found, summary) in enumerate(zip(maps, case["features"], strict=True)):
        assert list(found.shape) == summary["shape"]
        parity.check_summary(found, summary, 2e-5, f"map {i}")
    weights = [torch.from_numpy(np.random.RandomState(7 + i).standard_normal(y.shape)) for i, y in enumerate(maps)]
    sum((y * w).sum() for y, w in zip(maps, weights, strict=True)).backward()
    parity.check_summary(x.grad, case["grad_input"], 1e-4, "input gradient", kind="gradients")

    def renamed(weights, _):
        parts = split_backbone(weights)
        return convert_features(parts.net, net) | {f"adapter.{name}": value for name, value in parts.adapter.items()}

    names = parity.gradient_names(RECORD, renamed, net)
    assert {names[official] for official in case["grad_l2"]} == both.keys()
    parity.check_norms({key: both[names[key]].grad.norm().item() for key in case["grad_l2"]}, case, 1e-3)


def test_parameters_of_the_official_detectors_backbone():
    net = create_features("plainmamba_l1", out_norm=False, device="meta")
    adapter = ViTAdapter(net.model, device="meta")
    assert sum(p.numel() for part in (net, adapter) for p in part.parameters()) == 9_796_464


@pytest.fixture(params=NETS)
def net(request):
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=0, **NETS[request.param]).eval()
    return model, ViTAdapter(model, num_heads=4, num_points=2, prior_width=8, drop_path_rate=0.5).eval()


@torch.no_grad()
def randomise(adapter):
    for value in adapter.parameters():
        value.copy_(torch.randn_like(value) * (0.02 if value.dim() > 1 else 0.5))


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 96)])
def test_any_size(net, size):
    """As if the image had been filled with zeros to whole multiples of 32 pixels, and the maps been cut."""
    model, adapter = net
    x = torch.randn(2, 3, *size)
    maps = adapter(model, x)
    sides = [[-(-side // stride) for side in size] for stride in (4, 8, 16, 32)]
    assert [list(y.shape) for y in maps] == [[2, model.num_features, *side] for side in sides]
    filled = torch.zeros(2, 3, *(-(-side // 32) * 32 for side in size))
    filled[:, :, : size[0], : size[1]] = x
    for y, whole, (rows, columns) in zip(maps, adapter(model, filled), sides, strict=True):
        torch.testing.assert_close(y, whole[:, :, :rows, :columns])


def test_at_the_start_the_net_is_as_it_was(net):
    """The coarsest tokens of a net are its own, for what is injected starts at zero."""
    model, adapter = net
    seen = []
    model.blocks[-1].register_forward_hook(lambda _, args, output: seen.append(output))
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 96)
        model.forward_features(x)
        adapter(model, x)
        torch.testing.assert_close(seen[1], seen[0])
        randomise(adapter)
        adapter(model, x)
    assert (seen[2] - seen[0]).abs().max() > 0.1


def test_every_parameter_has_its_gradient_with_checkpoints_and_without(net):
    model, adapter = net
    randomise(adapter)
    parameters = [p for n, p in model.named_parameters() if not n.startswith("norm.")] + list(adapter.parameters())
    x = torch.randn(1, 3, 32, 64)

    def gradients(checkpointed):
        model.set_grad_checkpointing(checkpointed)
        return torch.autograd.grad(sum(y.square().sum() for y in adapter(model, x)), parameters)

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(checkpointed, plain)


def test_one_image_has_the_gradient_that_it_has_among_two():
    net, adapter = official()
    x = torch.randn(1, 3, 64, 96)

    def gradients(x):
        loss = sum(y.pow(3).sum() for y in adapter(net.model, x)) / len(x)
        return torch.autograd.grad(loss, list(adapter.parameters()))

    for one, two in zip(gradients(x), gradients(torch.cat([x, x])), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * two.abs().max().item())


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("vmamba_pico", {}, "VMamba is none"),
        ("deit_tiny_patch16_224", {}, "dynamic_img_size=True"),
        ("deit_tiny_patch16_224", dict(dynamic_img_size=True, patch_drop_rate=0.5), "leave out patch_drop_rate"),
    ],
)
def test_other_nets_are_refused(name, options, text):
    with pytest.raises(ValueError, match=text):
        ViTAdapter(timm.create_model(name, device="meta", **options))


@pytest.mark.parametrize("last_blocks", [(0, 4), (1, 1), (2, 0), ()])
def test_parts_that_it_has_not_are_refused(last_blocks):
    with pytest.raises(ValueError, match="rise within 0 to 3"):
        ViTAdapter(timm.create_model("vim_pico", device="meta"), last_blocks)


def test_a_net_that_prunes_tokens_is_refused():
    model = timm.create_model("plainmamba_pico")
    adapter = ViTAdapter(model, num_heads=4, prior_width=8)
    model.set_pruning([1], 0.5)
    with pytest.raises(ValueError, match=r"prunes some: call its set_pruning\(\)"):
        adapter(model, torch.randn(1, 3, 32, 32))

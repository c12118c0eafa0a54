"""The sparse form of networks: dense where everything is seen, and blind to what is masked."""

import copy

import pytest
import timm
import torch
from torch import nn

from vssm.layers import mask_at, sparse_form

NETS = {
    "norms": lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)),
    "volumes": lambda: nn.Sequential(nn.Conv3d(3, 4, 2, 2), nn.BatchNorm3d(4), nn.Conv3d(4, 4, 3, padding=1)),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[name]() if name in NETS else timm.create_model(name, features_only=True)


def maps_of(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    maps = net(x)
    return list(maps) if isinstance(maps, list | tuple) else [maps]


def image(name: str) -> torch.Tensor:
    return torch.randn(2, 3, *((4, 8, 12) if name == "volumes" else (64, 96)))


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vmamba_pico", *NETS])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_all_visible_is_dense(name, training):
    net, x = build(name).train(training), image(name)
    other = copy.deepcopy(net)
    expected = maps_of(net, x)
    grid = (2, 4, 6) if name == "volumes" else (2, 3)
    with sparse_form(other, torch.ones(2, 1, *grid, dtype=torch.bool)):
        got = maps_of(other, x)
    for mine, dense in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, dense, rtol=1e-4, atol=1e-4)
    for (key, mine), dense in zip(other.state_dict().items(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, dense, rtol=1e-4, atol=1e-5, msg=key)
    torch.testing.assert_close(maps_of(other, x)[0], maps_of(net, x)[0])  # as it was


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vmamba_pico", *NETS])
def test_masked_places_are_empty(name):
    net, x = build(name).train(), image(name)
    grid = (2, 4, 6) if name == "volumes" else (2, 3)
    visible = torch.zeros(2, 1, *grid, dtype=torch.bool)
    visible[..., ::2] = True
    seen = mask_at(visible, x.shape[2:])
    with sparse_form(net, visible):
        maps = maps_of(net, x.masked_fill(~seen, 0.0))
    for y in maps:
        assert not y.masked_select(~mask_at(visible, y.shape[2:])).any() and y.any()


def test_statistics_are_of_visible_places():
    norm = nn.BatchNorm2d(3).train()
    x = torch.randn(2, 3, 4, 4)
    visible = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    visible[:, :, :2] = True
    other = copy.deepcopy(norm)
    with sparse_form(norm, visible):
        y = norm(x)
    torch.testing.assert_close(y[:, :, :2], other(x[:, :, :2]))
    torch.testing.assert_close(norm.running_var, other.running_var)
    torch.testing.assert_close(norm.running_mean, other.running_mean)


def test_masks_are_repeated():
    visible = torch.tensor([[[[True, False]]]])
    assert mask_at(visible, (2, 4))[0, 0].tolist() == [[True, True, False, False]] * 2
    assert mask_at(visible, (2, 3)) is None and mask_at(visible, (1, 1)) is None

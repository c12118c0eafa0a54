"""Equal blocks are counted once, and the figures are those of a count of every block."""

import pytest
import timm
import torch
from torch import nn

import vssm  # noqa: F401  (registers the models)
from vssm.profiling import count, flops
from vssm.profiling.repeats import NotRepeated, Repeats

pytest.importorskip("fvcore")


def both(monkeypatch, model, size, kind="paper"):
    """Costs with equal blocks counted once, with all counted, and how many blocks the first left out."""
    left_out = []

    class Watched(Repeats):
        def add(self, counts):
            left_out.append(sum(map(len, self.chains.values())))
            super().add(counts)

    with monkeypatch.context() as patch:
        patch.setattr(flops, "Repeats", Watched)
        once = count(model, size, kind)
    with monkeypatch.context() as patch:
        patch.setattr(flops, "Repeats", lambda model: None)
        whole = count(model, size, kind)
    return once, whole, max(left_out, default=0)


@pytest.mark.parametrize(
    ("name", "options", "repeats"), [("vmamba_pico", {"depths": (1, 3, 2, 4)}, 6), ("vim_pico", {}, 3)]
)
def test_blocks(name, options, repeats, monkeypatch):
    """tests/profiling/test_flops.py compares every family's figures with those of a real run of all blocks."""
    model = timm.create_model(name, device="meta", drop_path_rate=0.1, **options)
    once, whole, left_out = both(monkeypatch, model, (3, 64, 96))
    assert once == whole and left_out == repeats


def test_floating_point_operations(monkeypatch):
    once, whole, left_out = both(monkeypatch, timm.create_model("resnet50", device="meta"), (3, 64, 64), "flops")
    assert once == whole and left_out == 8


class Pyramid(nn.Module):
    """Equal layers on maps of different sizes."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

    def forward(self, x):
        small = x[..., ::2, ::2]
        return self.blocks[0](x).sum() + self.blocks[1](small).sum()


class Uncalled(Pyramid):
    def forward(self, x):
        return self.blocks[0](x)


class LooksInside(Pyramid):
    def forward(self, x):
        return self.blocks[1](self.blocks[0](x)) + self.blocks[1].bias.sum()


def strided():
    return nn.Sequential(*(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(3)))


@pytest.mark.parametrize("make", [Pyramid, Uncalled, LooksInside, strided])
def test_what_only_looks_repeated_is_counted_whole(make, monkeypatch):
    once, whole, left_out = both(monkeypatch, make(), (3, 16, 16))
    assert once == whole and left_out == 0
    assert once.flops > 0


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)),
    ],
    ids=["groups", "bias", "dtype", "dilation", "type"],
)
def test_other_layers_are_kept(other):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), other).eval()
    assert not Repeats(model).chains and model[1] is other


def test_a_module_that_is_called_more_often_is_noticed():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

        def forward(self, x):
            return self.blocks[1](self.blocks[1](self.blocks[0](x)))

    model = Twice().eval()
    repeats = Repeats(model)
    model(torch.randn(1, 3))
    with pytest.raises(NotRepeated):
        repeats.check()

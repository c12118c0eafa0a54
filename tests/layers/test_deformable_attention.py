"""Deformable attention against loops over its definition, in float64."""

import itertools
import math

import pytest
import torch

from vssm.layers import DeformableAttention, deformable_attention, raster_points

SIZES = [(3, 5), (1, 2), (4, 1)]


def at(part, x, y):
    """A map (H, W, C) at x and y in pixels, whose centres are at .5: each neighbour by its nearness, 0 outside."""
    height, width, _ = part.shape
    total = part.new_zeros(part.shape[-1])
    left, top = math.floor(x.item() - 0.5), math.floor(y.item() - 0.5)
    for column, row in itertools.product((left, left + 1), (top, top + 1)):
        if 0 <= column < width and 0 <= row < height:
            total = total + (1 - (x - 0.5 - column).abs()) * (1 - (y - 0.5 - row).abs()) * part[row, column]
    return total


def reference(values, sizes, points, offsets, weights):
    batch, _, heads, width = values.shape
    result = values.new_zeros(batch, len(points), heads, width)
    starts = [0, *itertools.accumulate(rows * columns for rows, columns in sizes)]
    for b, q, h, m, p in itertools.product(*map(range, weights.shape)):
        rows, columns = sizes[m]
        part = values[b, starts[m] : starts[m + 1], h].view(rows, columns, width)
        x, y = points[q] * points.new_tensor([columns, rows]) + offsets[b, q, h, m, p]
        result = result.index_put(
            (torch.tensor(b), torch.tensor(q), torch.tensor(h)), weights[b, q, h, m, p] * at(part, x, y), True
        )
    return result.flatten(2)


def arguments(dtype=torch.float64):
    torch.manual_seed(0)
    values = torch.randn(2, 21, 2, 3, dtype=dtype)
    offsets = 2 * torch.randn(2, 4, 2, 3, 2, 2, dtype=dtype)  # some of the points are outside
    weights = torch.randn(2, 4, 2, 3, 2, dtype=dtype)
    return values, torch.rand(4, 2, dtype=dtype), offsets, weights


def test_it_is_the_definition():
    tensors = [x.requires_grad_() for x in arguments()]
    found, expected = (f(tensors[0], SIZES, *tensors[1:]) for f in (deformable_attention, reference))
    torch.testing.assert_close(found, expected)
    seed = torch.randn_like(expected)
    for gradient, wanted in zip(*(torch.autograd.grad(y, tensors, seed) for y in (found, expected)), strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(gradient, wanted)


def test_in_half_precision_places_stay_exact():
    """A bfloat16 has 8 bits, and on a map of 300 pixels a place between two of them needs more."""
    values = torch.arange(300.0).view(1, 300, 1, 1) / 300
    points = raster_points([(1, 300)])
    zeros = torch.zeros(1, 300, 1, 1, 1, 2, dtype=torch.bfloat16)
    found = deformable_attention(values.bfloat16(), [(1, 300)], points, zeros, torch.ones(1, 300, 1, 1, 1).bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.view(-1), values.bfloat16().view(-1))


def test_points_are_the_pixels_by_rows():
    expected = [
        (1 / 6, 1 / 4),
        (1 / 2, 1 / 4),
        (5 / 6, 1 / 4),
        (1 / 6, 3 / 4),
        (1 / 2, 3 / 4),
        (5 / 6, 3 / 4),
        (0.5, 0.5),
    ]
    torch.testing.assert_close(raster_points([(2, 3), (1, 1)]), torch.tensor(expected))


def test_at_the_start_every_head_looks_in_its_own_direction():
    layer = DeformableAttention(8, num_heads=4, num_maps=2, num_points=3)
    offsets = layer.sampling_offsets.bias.view(4, 2, 3, 2)
    ring = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).view(4, 1, 1, 2)
    torch.testing.assert_close(offsets, (ring * torch.arange(1.0, 4).view(1, 1, 3, 1)).expand(4, 2, 3, 2))
    with pytest.raises(ValueError, match="must divide the width 8, got 3"):
        DeformableAttention(8, num_heads=3)

"""Stems and downsampling layers: shapes at any size, and the order of the phases."""

import pytest
import torch

from vssm.layers import ConvDownsample, ConvStem, PatchMerging, PatchStem


@pytest.mark.parametrize("size", [(75, 101), (8, 8), (4, 5)])
def test_stem_sizes(size):
    h, w = size
    x = torch.randn(2, 3, h, w)
    assert PatchStem(3, 8)(x).shape == (2, h // 4, w // 4, 8)
    assert ConvStem(3, 8)(x).shape == (2, -(-h // 4), -(-w // 4), 8)


@pytest.mark.parametrize("layer", [PatchMerging, ConvDownsample])
@pytest.mark.parametrize("size", [(6, 4), (7, 5), (1, 1)])
def test_downsampling_rounds_up(layer, size):
    h, w = size
    assert layer(8, 16)(torch.randn(2, h, w, 8)).shape == (2, -(-h // 2), -(-w // 2), 16)


def test_patch_merging_order_and_padding():
    """Phases (even row, even column), (odd, even), (even, odd), (odd, odd); what is missing at the edges is zero."""
    layer = PatchMerging(1, 4)
    layer.norm = torch.nn.Identity()
    with torch.no_grad():
        layer.reduction.weight.copy_(torch.eye(4))
    x = torch.arange(1.0, 7.0).view(1, 2, 3, 1)
    assert layer(x)[0].tolist() == [[[1, 4, 2, 5], [3, 6, 0, 0]]]


@pytest.mark.parametrize(("stem", "smallest"), [(PatchStem, 4), (ConvStem, 1)])
def test_images_that_are_too_small(stem, smallest):
    given = smallest - 1
    with pytest.raises(ValueError, match=f"^images must be at least {smallest} x {smallest} pixels, got 9 x {given}$"):
        stem(3, 8)(torch.zeros(1, 3, 9, given))

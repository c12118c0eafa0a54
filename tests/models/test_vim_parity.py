"""Vim against the numbers of the official model."""

from vssm.models.vim import FAMILY

from .parity_tester import ParityTester

UNIT = dict(dim=48, depth=4, d_state=16, num_classes=10)


class TestVim(ParityTester):
    family = FAMILY
    files = ("vim",)
    models = {
        "_unit": ("vim_pico", dict(UNIT, img_size=(64, 96))),
        "_unit_stride8": ("vim_pico", dict(UNIT, img_size=(40, 56), stride=8)),
    }
    elsewhere = ("_unit_seg_tiny_style", "_unit_seg_small_style", "_unit_det")
    output, unit, gradient = 1e-4, 2e-5, 1e-3
    stacked = True  # both directions

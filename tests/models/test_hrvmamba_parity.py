"""HRVMamba against the numbers of the official models."""

import pytest
import timm
import torch

from tests import parity
from vssm.models.hrvmamba import FAMILY

from .parity_tester import ParityTester

UNIT = dict(stem_dim=64, depths=(1, 1, 1), neck_dims=(128, 256, 512, 1024), num_features=2048)
PLAIN = dict(se=False, pos_conv=False, dims=(80, 16, 32, 64), offset_conv=(True, False, False, False))


class TestHRVMamba(ParityTester):
    family = FAMILY
    files = ("hrvmamba",)
    models = {"_unit": ("hrvmamba_pico", UNIT), "_unit_dw": ("hrvmamba_pico", UNIT | PLAIN)}
    # The nets magnify rounding; float64 is what is compared closely.
    output, gradient = 5e-4, None
    float64 = 1e-8

    @pytest.mark.parametrize("unit", models)
    @torch.no_grad()
    def test_maps_of_the_neck(self, unit):
        where = ("fp64", "cases", 1)
        model, case = self.build(unit, where), self.case(unit, where)
        name, options = self.models[unit]
        neck = timm.create_model(name, maps="neck", device="meta", **options).eval()
        neck.load_state_dict(model.state_dict(), assign=True)
        output, maps = neck.forward_intermediates(parity.image(case).double())
        for got, summary in zip(maps, case["neck"], strict=True):
            parity.check_summary(got, summary, self.float64, "map of the neck")
        parity.check_summary(neck.forward_head(output), case["output"], self.float64, "output")

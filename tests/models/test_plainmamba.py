"""PlainMamba beyond its parity vectors."""

import timm
import torch

from tests import parity
from vssm.models.plainmamba import FAMILY, checkpoint_filter_fn

from .tester import FamilyTester, Official, assert_same

UNIT = dict(dim=32, depth=4, d_state=4, num_classes=10, img_size=64, stem_convs=2)


class TestPlainMamba(FamilyTester):
    family = FAMILY
    checkpoints = {"unit": Official("plainmamba", "_unit", "plainmamba_pico", UNIT)}
    refused = [("plainmamba_pico", dict(global_pool="token"), ("'avg'", "'token'"))]

    def test_buffers_of_averages_are_dropped(self):
        official = self.checkpoints["unit"]
        averages = {"ema_" + k.replace(".", "_"): v + 1 for k, v in official.weights().items()}
        checkpoint = {"state_dict": {**official.weights(), **averages}, "meta": {"epoch": 300}}
        assert_same(official.convert(checkpoint), official.convert(official.weights()))

    def test_epsilons(self):
        model = timm.create_model("plainmamba_pico", device="meta")
        assert {block.norm.eps for block in model.blocks} == {1e-5} and model.norm.eps == 1e-6

    @torch.no_grad()
    def test_the_papers_reading_is_another(self):
        weights = parity.state_dict(parity.load("plainmamba")["variants"]["_unit"])
        x, results = torch.randn(1, 3, 48, 64), []
        for align in (False, True):
            model = timm.create_model("plainmamba_pico", align_projections=align, **UNIT).eval()
            model.load_state_dict(checkpoint_filter_fn(dict(weights), model))
            results.append(model(x))
        assert (results[0] - results[1]).abs().max() > 0.1 * results[0].std()

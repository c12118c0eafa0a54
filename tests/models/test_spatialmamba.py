"""Spatial-Mamba beyond its parity vectors."""

import pytest
import timm
import torch

from vssm.models.spatialmamba import FAMILY
from vssm.profiling import paper_flops

from .tester import FamilyTester, Official


class TestSpatialMamba(FamilyTester):
    family = FAMILY
    parameters = {
        "spatialmamba_tiny": 26_748_862,
        "spatialmamba_small": 43_074_280,
        "spatialmamba_base": 95_745_592,
        "spatialmamba_pico": 680_047,
    }
    entries = {"spatialmamba_tiny": 553, "spatialmamba_small": 931, "spatialmamba_base": 931}
    checkpoints = {"tiny": Official("spatialmamba", "spatialmamba_tiny", "spatialmamba_tiny")}
    missing = [
        (
            "tiny",
            "layers.2.blocks.0.self_attention.state_fusion.alpha",
            "missing stages.2.blocks.0.mixer.fusion.alpha; unexpected none",
        )
    ]
    by_hand = {f"spatialmamba_{size}": "drive.google.com/file/d/1" for size in ("tiny", "small", "base")}
    maps = {
        (75, 101): [(19, 26), (10, 13), (5, 7), (3, 4)],
        (70, 90): [(18, 23), (9, 12), (5, 6), (3, 3)],
        (33, 32): [(9, 8), (5, 4), (3, 2), (2, 1)],
        (1, 1): [(1, 1)] * 4,
    }

    def test_values_stand_where_they_belong(self):
        official = self.checkpoints["tiny"]
        weights, ours = official.weights(), official.convert(official.weights())
        kernel = weights["layers.1.blocks.0.self_attention.state_fusion.kernel_3_2"]
        assert torch.equal(ours["stages.1.blocks.0.mixer.fusion.kernel5"], kernel)
        bias = weights["layers.3.blocks.0.self_attention.dt_projs_bias"]
        assert torch.equal(ours["stages.3.blocks.0.mixer.dt_projs_bias"][0], bias)

    @torch.no_grad()
    @pytest.mark.parametrize("size", [(75, 101), (1, 1)])
    def test_any_size(self, size):
        assert timm.create_model("spatialmamba_pico").eval()(torch.randn(1, 3, *size)).isfinite().all()

    @pytest.mark.parametrize(
        ("name", "network", "scan"),
        [
            ("spatialmamba_tiny", 4.449, 0.018),
            ("spatialmamba_small", 7.089, 0.028),
            ("spatialmamba_base", 15.759, 0.042),
        ],
    )
    def test_published_gflops(self, name, network, scan):
        """The official counter's digits: of the network, counted in training mode, and of the states."""
        pytest.importorskip("fvcore")
        model = timm.create_model(name, device="meta")
        blocks = [(i, block.mixer) for i, stage in enumerate(model.stages) for block in stage.blocks]
        states = sum(7 * (56 // 2**i) ** 2 * mixer.d_inner for i, mixer in blocks)
        assert round(states / 1e9, 3) == scan
        assert round((paper_flops(model) - states) / 1e9, 3) == network

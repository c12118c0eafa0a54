"""VSSD beyond its parity vectors."""

import pytest
import timm
import torch

from vssm.models.vssd import FAMILY, MapAttention, checkpoint_filter_fn
from vssm.scans import NonCausalSSD2D

from .tester import FamilyTester, Official, assert_same

RELEASE = "https://huggingface.co/YuhengSSS/VSSD/resolve/main/"


class TestVSSD(FamilyTester):
    family = FAMILY
    parameters = {
        "vssd_micro": 13_512_964,
        "vssd_tiny": 24_270_724,
        "vssd_small": 40_075_650,
        "vssd_base": 88_823_151,
        "vssd_pico": 625_937,
    }
    entries = {"vssd_micro": 379, "vssd_tiny": 421, "vssd_small": 730, "vssd_base": 730}
    checkpoints = {
        "small": Official("vssd", "vssd_small", "vssd_small"),
        "micro": Official("vssd", "vssd_micro", "vssd_micro"),
    }
    foreign = [
        (
            "micro",
            "layers.0.blocks.0.attn.extra_norm.weight",
            "unexpected stages.0.blocks.0.mixer.extra_norm.weight",
            "iccv2025",
        )
    ]
    misfits = [("micro", dict(dims=64), ("wrong shape",))]
    urls = {
        "vssd_micro.in1k": RELEASE + "vssd_micro_best.pth",
        "vssd_tiny.in1k": RELEASE + "vssd_tiny_best_ema.pth",
        "vssd_tiny.mesa_in1k": RELEASE + "vssd_tiny_e300_with_mesa.pth",
        "vssd_small.in1k": RELEASE + "vssd_small_best_ema.pth",
        "vssd_small.mesa_in1k": RELEASE + "vssd_small_e300_with_mesa.pth",
        "vssd_base.in1k": RELEASE + "vssd_base_best_ema.pth",
        "vssd_base.mesa_in1k": RELEASE + "vssd_base_e300_with_mesa.pth",
    }
    refused = [
        ("vssd_pico", dict(num_heads=(1, 2)), ("4 stages", "(1, 2)")),
        ("vssd_pico", dict(num_heads=(3, 2, 4, 8)), ("32", "3 heads")),
        ("vssd_pico", dict(num_heads=(1, 2, 4, 5)), ("128", "5 heads")),
    ]
    spared = {"A_log", "D", "dt_bias"}
    # The official classifier refuses every size that is not a multiple of 32.
    maps = {
        (75, 101): [(19, 26), (10, 13), (5, 7), (3, 4)],
        (80, 80): [(20, 20), (10, 10), (5, 5), (3, 3)],
        (100, 128): [(25, 32), (13, 16), (7, 8), (4, 4)],
        (128, 48): [(32, 12), (16, 6), (8, 3), (4, 2)],
        (1, 1): [(1, 1)] * 4,
    }

    @torch.no_grad()
    @pytest.mark.parametrize("size", [(75, 101), (128, 48), (1, 1)])
    def test_any_size(self, size):
        assert timm.create_model("vssd_pico").eval()(torch.randn(1, 3, *size)).isfinite().all()

    def test_the_last_stage_attends(self):
        for name in self.parameters:
            model = timm.create_model(name, device="meta")
            assert all(isinstance(b.mixer, NonCausalSSD2D) for stage in model.stages[:3] for b in stage.blocks)
            assert all(isinstance(b.mixer, MapAttention) for b in model.stages[3].blocks)

    @pytest.mark.parametrize(("name", "key"), [("vssd_micro", "model"), ("vssd_tiny", "model_ema")])
    def test_micro_alone_takes_the_raw_weights(self, tmp_path, name, key):
        """Of the published files only micro's is not named after its averaged weights."""
        options = dict(depths=(1, 1, 1, 1), dims=16, num_heads=(1, 2, 4, 8), d_state=16, num_classes=10)
        raw = timm.create_model(name, **options).state_dict()
        both = {"model": raw, "model_ema": {k: v + 1 for k, v in raw.items()}}
        torch.save(both, tmp_path / "both.pth")
        overlay = dict(file=str(tmp_path / "both.pth"), num_classes=10)
        loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        assert_same(loaded.state_dict(), both[key])
        only = {"model": both["model_ema"]}
        assert_same(checkpoint_filter_fn(only, loaded, averaged=name != "vssd_micro"), both["model_ema"])

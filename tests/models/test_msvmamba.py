"""MSVMamba beyond its parity vectors."""

import pytest
import timm
import torch

from vssm.models.msvmamba import FAMILY

from .test_vmamba import early_names, linear_layers_as_convolutions
from .tester import FamilyTester, Official, assert_refused

UNIT = dict(dims=16, depths=(1, 2, 1, 1), num_classes=10)
FIRST = Official("msvmamba", "_unit_v1", "msvmamba_nano", UNIT, first_blocks=False)
SECOND = Official("msvmamba", "_unit_v3_noz", "msvmambav3_tiny", UNIT, first_blocks=False)


class TestMSVMamba(FamilyTester):
    family = FAMILY
    parameters = {
        "msvmamba_nano": 6_864_136,
        "msvmamba_micro": 11_879_272,
        "msvmamba_tiny": 33_046_312,
        "msvmambav3_tiny": 32_263_720,
        "msvmambav3_small": 50_216_296,
        "msvmambav3_base": 90_591_976,
        "msvmamba_pico": 523_304,
        "msvmambav3_pico": 536_408,
    }
    checkpoints = {"first": FIRST, "second": SECOND}
    layouts = [
        ("first", linear_layers_as_convolutions),
        ("second", linear_layers_as_convolutions),
        ("first", early_names),
    ]
    missing = [
        (
            "first",
            "layers.2.blocks.0.op.conv2d_b1.bias",
            "missing stages.2.blocks.0.mixer.conv_half.bias; unexpected none",
        )
    ]
    misfits = [("first", dict(dims=32), ("wrong shape", "instead of"))]
    urls = {
        f"msvmambav3_{size}": f"https://huggingface.co/YuhengSSS/MSVMamba/resolve/main/msvmambav3_{size}_224.pth"
        for size in ("tiny", "small", "base")
    }
    by_hand = {f"msvmamba_{size}": "Google Drive folder id 1" for size in ("nano", "micro", "tiny")}
    refused = [("msvmamba_pico", dict(upsample_mode="area"), ("bilinear", "nearest", "'area'"))]

    @pytest.mark.parametrize(("official", "full"), [(FIRST, 1), (SECOND, 0)], ids=["first", "second"])
    def test_the_full_branch_is_first(self, official, full):
        """The first generation's files hold the half branch first, the second's the full branch."""
        weights, ours = official.weights(), official.convert(official.weights())
        at, mixer = "layers.1.blocks.0.op.", "stages.1.blocks.0.mixer."
        for name in ("dt_projs_weight", "dt_projs_bias"):
            assert torch.equal(ours[mixer + name][0], weights[at + name][full])
            assert torch.equal(ours[mixer + name][1], weights[at + name][1 - full])
        for name in ("A_logs", "Ds"):
            halves = weights[at + name].chunk(2)
            assert torch.equal(ours[mixer + name], torch.cat([halves[full], halves[1 - full]]))
        halves = weights[at + "x_proj_weight"]
        assert torch.equal(ours[mixer + "x_proj.weight"], torch.cat([halves[full], halves[1 - full]]))

    def test_the_other_generation_is_refused(self):
        for written, wanted in ((FIRST, SECOND), (SECOND, FIRST)):
            assert_refused(ValueError, ["MSVMamba", "missing st"], wanted.convert, written.weights())

    def test_initialisation(self):
        torch.manual_seed(0)
        model = timm.create_model("msvmamba_pico", dims=64, depths=(1, 1))
        block = model.stages[1].blocks[0]
        for weight in (block.mixer.in_proj.weight, block.mixer.out_proj.weight, block.mixer.se.fc1.weight):
            assert 0.018 < weight.std() < 0.022
        assert 0.018 < model.head.fc.weight.std() < 0.022 and (model.head.fc.bias == 0).all()
        bound = 128**-0.5  # the feed-forward layer starts like the convolutions it is made of officially
        assert 0.95 * bound < block.mlp.fc1.weight.abs().max() <= bound and block.mlp.fc1.bias.abs().max() > 0
        assert block.mixer.x_proj.weight.abs().max() > 0.98 * 256**-0.5

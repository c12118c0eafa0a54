"""EfficientVMamba beyond its parity vectors."""

import timm
import torch

from vssm.models.efficientvmamba import FAMILY, EVSSBlock, InvertedResidual

from .test_vmamba import early_names
from .tester import FamilyTester, Official

UNIT = dict(dims=16, depths=(1, 2, 1, 1), num_classes=10)
HUB = "https://huggingface.co/TerryPei/EfficientVMamba-{}/resolve/main/efficient_vmamba_{}.ckpt"


class TestEfficientVMamba(FamilyTester):
    family = FAMILY
    parameters = {
        "efficientvmamba_tiny": 6_493_660,
        "efficientvmamba_small": 11_273_688,
        "efficientvmamba_base": 33_717_136,
        "efficientvmamba_pico": 515_646,
    }
    checkpoints = {"unit": Official("efficientvmamba", "_unit", "efficientvmamba_pico", UNIT, first_blocks=False)}
    layouts = [("unit", early_names)]
    missing = [
        (
            "unit",
            "layers.2.1.conv_pw2.1.running_var",
            "missing stages.2.blocks.0.conv_pwl.bn.running_var; unexpected none",
        )
    ]
    # A block with an MLP.
    foreign = [
        ("unit", "layers.0.blocks.0.norm2.weight", "missing none; unexpected stages.0.blocks.0.norm2.weight"),
    ]
    misfits = [
        ("unit", dict(dims=24), ("wrong shape", "instead of")),
        # Blocks of the flat stages count from 1 in the file, from 0 here.
        ("unit", dict(depths=(1, 2, 2, 1)), ("missing stages.2.blocks.1.",)),
    ]
    urls = {f"efficientvmamba_{s.lower()}": HUB.format(s, s.lower()) for s in ("Tiny", "Small", "Base")}
    refused = [("efficientvmamba_pico", dict(dims=4), ("8", "4"))]
    maps = {(75, 101): [(18, 25), (9, 13), (5, 7), (3, 4)]}

    def test_stages(self):
        model = timm.create_model("efficientvmamba_base", device="meta")
        kinds = [{type(block) for block in stage.blocks} for stage in model.stages]
        assert kinds == [{EVSSBlock}, {EVSSBlock}, {InvertedResidual}, {InvertedResidual}]
        assert [len(stage.blocks) for stage in model.stages] == [2, 2, 9, 2]

    def test_one_gate_weighs_both_branches(self):
        """With the second branch silent, a block adds the scan times its own gate; and the other way round."""
        torch.manual_seed(0)
        block = EVSSBlock(16).eval().double()
        x = torch.randn(1, 6, 5, 16, dtype=torch.float64)
        zero = torch.zeros_like(x)
        with torch.no_grad():
            n = block.norm(x)
            s = block.mixer(n)
            c = block.pw_conv(block.conv(n.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
            assert torch.allclose(block(x), x + block.gate(s) + block.gate(c))
            assert not torch.allclose(block(x), x + block.gate(s + c), rtol=1e-4)
            assert torch.equal(block.gate(zero), zero)
            # The weights come from the mean of the normalised map; the map itself is not normalised.
            mean = torch.nn.functional.layer_norm(s, (16,), eps=1e-5).mean((1, 2))
            hidden = torch.nn.functional.gelu(mean @ block.gate.mlp.fc1.weight.T + block.gate.mlp.fc1.bias)
            weight = torch.sigmoid(hidden @ block.gate.mlp.fc2.weight.T + block.gate.mlp.fc2.bias)
            assert torch.allclose(block.gate(s), s * weight[:, None, None])

    def test_initial_parameters(self):
        torch.manual_seed(0)
        model = timm.create_model("efficientvmamba_tiny")
        block, residual = model.stages[1].blocks[0], model.stages[2].blocks[0]
        for linear in (block.mixer.in_proj, block.gate.mlp.fc1, model.stages[1].downsample.reduction, model.head.fc):
            assert 0.018 < linear.weight.std() < 0.022
            assert linear.bias is None or not linear.bias.any()
        for conv in (block.pw_conv, residual.se.fc1, residual.conv_pw.conv):  # as PyTorch: uniform
            bound = conv.weight[0].numel() ** -0.5
            assert 0.98 * bound < conv.weight.abs().max() <= bound
            assert conv.bias is None or conv.bias.any()
        assert torch.allclose(block.mixer.A_logs[5].exp(), torch.arange(1.0, 17))

    def test_addresses_are_marked_as_not_verified(self):
        for tag in self.urls:
            assert "not verified" in timm.get_pretrained_cfg(tag).description

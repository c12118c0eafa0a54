"""Vim beyond its parity vectors: the options of its older and its downstream nets."""

import pytest
import timm
import torch

from tests import parity
from vssm.models.vim import FAMILY, checkpoint_filter_fn

from .tester import FamilyTester, Official

UNIT = dict(dim=48, depth=4, d_state=16, num_classes=10)
ROTATED = dict(class_token=False, rope=True, halve=False)


class TestVim(FamilyTester):
    family = FAMILY
    checkpoints = {"unit": Official("vim", "_unit", "vim_pico", dict(UNIT, img_size=(64, 96)))}
    refused = [
        ("vim_pico", dict(rope=True), ("class_token=False",)),
        ("vim_pico", dict(class_token=False, global_pool="token"), ("'avg'", "'token'")),
    ]

    @torch.no_grad()
    def test_rotated_net_of_detectors(self):
        """No class token, rotations, the sum of both directions as it is: the official detector's last map."""
        record = parity.load("vim")["variants"]["_unit_det"]
        options = dict(UNIT, **ROTATED, img_size=64)
        model = timm.create_model("vim_pico", features_only=True, out_indices=(3,), **options).eval()
        assert sum(p.numel() for p in model.parameters()) == record["params"]
        model.model.load_state_dict(checkpoint_filter_fn(parity.state_dict(record), model.model))
        for case in record["cases"]:
            parity.check_summary(model(parity.image(case))[0], case["features"][0], 2e-5, "last map")
        for options in (dict(UNIT, img_size=64, class_token=False), dict(UNIT, img_size=64)):
            with pytest.raises(ValueError, match="class_token=False, rope=True, halve=False"):
                checkpoint_filter_fn(parity.state_dict(record), timm.create_model("vim_pico", **options))

    @torch.no_grad()
    def test_classifier_in_a_net_without_a_class_token(self):
        """The class token goes, and with it its own position, which stands in the middle."""
        weights = parity.state_dict(parity.load("vim")["variants"]["_unit"])
        model = timm.create_model("vim_pico", class_token=False, img_size=(64, 96), **UNIT)
        ours = checkpoint_filter_fn(dict(weights), model)
        table = weights["pos_embed"]
        assert torch.equal(ours["tokens.pos_embed"], torch.cat([table[:, :12], table[:, 13:]], dim=1))

    @torch.no_grad()
    def test_files_of_another_grid(self):
        """A file of 14 x 14 patches gives, loaded for another grid, what it gives there when resized at run time."""
        torch.manual_seed(0)
        source, x = timm.create_model("vim_pico").eval(), torch.randn(1, 3, 96, 128)
        target = timm.create_model("vim_pico", img_size=(96, 128), dynamic_img_size=False).eval()
        target.load_state_dict(checkpoint_filter_fn(source.state_dict(), target))
        assert target.tokens.grid == [6, 8] and torch.equal(target(x), source(x))
        source.set_input_size((96, 128))
        assert torch.equal(source.tokens.pos_embed, target.tokens.pos_embed)
        with pytest.raises(ValueError, match="must be of 96 x 128 pixels, got 96 x 96"):
            target(x[..., :96])
        target.set_input_size(96)
        assert target(x[..., :96]).isfinite().all()

    def test_segmentation_decoders(self):
        """DPT reads the class token beside the maps; features of one stride go into any decoder that takes them."""
        smp = pytest.importorskip("segmentation_models_pytorch")
        sizes = dict(decoder_intermediate_channels=(8, 8, 8, 8), decoder_fusion_channels=8)
        for name in ("vim_pico", "plainmamba_pico"):
            readout = "cat" if name == "vim_pico" else "ignore"
            net = smp.DPT(f"tu-{name}", encoder_weights=None, decoder_readout=readout, classes=3, **sizes)
            masks = net(torch.randn(2, 3, 64, 64))
            masks.mean().backward()
            assert masks.shape == (2, 3, 64, 64)
            assert net.encoder.model.blocks[0].mixer.A_logs.grad is not None

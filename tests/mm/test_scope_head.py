"""SegMAN's decoder against the vectors of the official one, alone and on the encoder; and what goes beyond it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from tests import parity
from vssm._errors import UserError
from vssm.engine import load_config
from vssm.mm import MMSCopEHead, convert_detector_checkpoint

REPO = Path(__file__).parents[2]
RECORDS = parity.load("segman")
# The choices that the specification lists differ by more.
OUTPUT, GRADIENT = 3e-5, 1e-3


def head_of(config, **options):
    """The head of a record, or one like it."""
    widths = options.pop("in_channels", config["in_channels"][1:])
    sizes = dict(channels=config["channels"], map_channels=config["proj"], num_classes=config["classes"])
    return MMSCopEHead(widths, **sizes | options).eval()


def maps_of(config, case):
    batch, height, width = case["stride4"]
    return [
        torch.from_numpy(
            np.random.RandomState(case["seed"] + i).standard_normal((batch, channels, height >> i, width >> i))
        ).float()
        for i, channels in enumerate(config["in_channels"])
    ]


def ours_of(head, official):
    """The name of an official parameter, found by converting it."""
    weights = {official: torch.zeros(())}
    head.convert_on_load(weights, "decode_head.")
    return next(iter(weights)).removeprefix("decode_head.")


CASES = [(key, i) for key, record in RECORDS["heads"].items() for i in range(len(record["cases"]))]


@pytest.mark.parametrize(("key", "number"), CASES)
def test_head(key, number, no_scope):
    record = RECORDS["heads"][key]
    head = head_of(record["config"])
    head.load_state_dict({name.removeprefix("decode_head."): v for name, v in parity.state_dict(record).items()})
    assert sum(p.numel() for p in head.parameters()) == record["params"]
    case = record["cases"][number]
    maps = [y.requires_grad_() for y in maps_of(record["config"], case)]
    output = head(maps)
    assert list(output.shape) == case["output_shape"]
    parity.check_summary(output, case["output"], OUTPUT, "output")
    if "grad_l2" not in case:
        return
    parity.loss(output).backward()
    assert maps[0].grad is None and case["grad_inputs"][0] is None
    for y, summary in zip(maps[1:], case["grad_inputs"][1:], strict=True):
        parity.check_summary(y.grad, summary, GRADIENT, "input gradient")
    names = {name: ours_of(head, name) for name in record["state_dict"]}
    parameters = dict(head.named_parameters())
    assert {names[name] for name in case["grad_l2"]} == parameters.keys()
    parity.check_norms({name: parameters[names[name]].grad.norm().item() for name in case["grad_l2"]}, case, GRADIENT)


@torch.no_grad()
def test_segmentor():
    """The config of the smallest one takes the official weights, and gives the official maps and logits."""
    record = RECORDS["segmentors"]["segman_tiny_ade20k"]
    cfg = load_config(str(REPO / "configs/segmentation/mmscope_segman-tiny_160k_ade20k-512x512.py"))
    cfg.model.backbone.pretrained = False
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    weights = convert_detector_checkpoint({"state_dict": parity.state_dict(record), "meta": {}}, model)
    model.load_state_dict(weights)
    case = record["cases"][0]
    maps = model.extract_feat(parity.image(case))
    assert len(maps) == 3  # not the finest, which the decoder does not read
    for y, summary in zip(maps, case["features"][1:], strict=True):
        assert list(y.shape) == summary["shape"]
        parity.check_summary(y, summary, OUTPUT, "feature")
    output = model.decode_head(maps)
    assert list(output.shape) == case["output_shape"]
    parity.check_summary(output, case["output"], OUTPUT, "output")


def pico(**options):
    return head_of(RECORDS["heads"]["_unit_head"]["config"], **options)


@torch.no_grad()
def test_other_sizes_are_padded_and_cropped():
    """What is added lies behind the right and lower edges: multiples of 4 stay as they are."""
    head = pico()
    x = torch.randn(1, 12, 14, 9)
    scanned = head.scan_scales(x)
    assert scanned.shape == (1, 36, 14, 9)
    torch.testing.assert_close(scanned, head.scan_scales(nn.functional.pad(x, (0, 3, 0, 2)))[:, :, :14, :9])
    maps = [torch.randn(2, 16, 14, 9), torch.randn(2, 24, 7, 5), torch.randn(2, 32, 4, 3)]
    assert head(maps).shape == (2, 5, 14, 9)
    assert head([torch.randn(2, 3, 28, 18), *maps]).shape == (2, 5, 14, 9)  # the last three of four


def test_it_stands_on_any_backbone():
    """Widths come from the backbone, and every parameter of both learns."""
    backbone = dict(type="VSSMBackbone", model_name="vmamba_pico", out_indices=(1, 2, 3))
    head = dict(type="MMSCopEHead", channels=8, map_channels=8, num_classes=3)
    model = MODELS.build(dict(type="mmseg.EncoderDecoder", backbone=backbone, decode_head=head))
    assert list(model.decode_head.in_channels) == [64, 128, 256]
    model.decode_head(model.extract_feat(torch.randn(2, 3, 64, 40))).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_mistakes_are_errors():
    with pytest.raises(UserError, match="three numbers each, not .* and 64"):
        pico(in_channels=64)
    with pytest.raises(UserError, match="three numbers"):
        pico(in_index=(0, 1, 2, 3))
    head, maps = pico().train(), [torch.randn(1, 16 + 8 * i, 8 >> i, 8 >> i) for i in range(3)]
    with pytest.raises(UserError, match="more than one image a batch"):
        head(maps)
    assert pico(norm_cfg=dict(type="GN", num_groups=4)).train()(maps).shape == (1, 5, 8, 8)


def test_the_two_decoders_are_compared_on_equal_terms():
    """The small runs of this decoder and of UPerNet differ in their heads alone."""
    folder = REPO / "configs" / "segmentation"
    ours, other = (load_config(str(folder / f"{head}_segman-pico_digits-ade.py")) for head in ("mmscope", "upernet"))
    same = set(ours) - {"model", "filename"}
    assert same > {"optim_wrapper", "param_scheduler", "train_dataloader", "train_cfg", "randomness"}
    assert all(ours[key] == other[key] for key in same)
    init_default_scope("mmseg")
    models = [MODELS.build(cfg.model).eval() for cfg in (ours, other)]
    sizes = [sum(p.numel() for p in model.backbone.model.parameters()) for model in models]
    assert sizes[0] == sizes[1]
    for model in models:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert model.encode_decode(torch.randn(1, 3, 72, 40), [dict(img_shape=(72, 40))]).shape == (1, 11, 72, 40)

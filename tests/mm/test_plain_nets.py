"""Plain nets under detectors and segmentors: the adapter, which maps they give, and the official weights."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

# vssm first: it lets mmdet be imported without mmcv's compiled operators.
import vssm.mm  # noqa: E402, F401, I001
from mmdet.testing import demo_mm_inputs  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS, DefaultScope  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402

from tests import parity  # noqa: E402
from vssm.engine import CheckpointError  # noqa: E402
from vssm.mm import SimpleFeaturePyramid, VSSMBackbone, convert_detector_checkpoint  # noqa: E402
from vssm.models.convert import convert_checkpoint  # noqa: E402
from vssm.models.create import ModelError  # noqa: E402

ADAPTED = dict(num_heads=4, num_points=2, prior_width=8)
# Official segmentors and the backbone of the detector: the backbone's options.
VIM = {
    "_unit_seg_tiny_style": dict(feature_maps="mixer"),
    "_unit_seg_small_style": dict(rope=True, halve=False, feature_maps="rotated"),
    "_unit_det": dict(rope=True, halve=False, out_indices=(3,)),
}


class Detector(nn.Module):
    def __init__(self, name, neck=None, **options):
        super().__init__()
        self.backbone = VSSMBackbone(name, **options)
        self.neck = neck or nn.Identity()

    def forward(self, x):
        return self.neck(self.backbone(x))


def official(key):
    """A record's weights in a detector, without a classifier's head."""
    weights = parity.state_dict(parity.load("plainmamba")["variants"][key])
    weights = {name.removeprefix("backbone."): value for name, value in weights.items()}
    return {f"backbone.{name}": value for name, value in weights.items() if not name.startswith("head.")}


def adapted(**options):
    return Detector("plainmamba_pico", adapter=ADAPTED, img_size=64, out_indices=(0, 1, 3), **options).eval()


@pytest.mark.parametrize("key", VIM)
def test_vims_official_segmentors_and_detector(key):
    record = parity.load("vim")["variants"][key]
    pyramid = dict(type="mmseg.Feature2Pyramid", embed_dim=48, norm_cfg=dict(type="BN"))
    neck = MODELS.build(pyramid) if "seg" in key else None
    model = Detector("vim_pico", neck, dim=48, d_state=16, img_size=64, class_token=False, **VIM[key]).eval()
    weights = {f"backbone.{name}": value for name, value in parity.state_dict(record).items()}
    model.load_state_dict(convert_detector_checkpoint(weights, model))
    unused = weights.get("backbone.norm_f.weight", torch.empty(0)).numel()  # it is there, and no map passes it
    assert sum(p.numel() for p in model.parameters()) == record["params"] - unused
    (case,) = record["cases"]
    x = parity.image(case).requires_grad_()
    maps = model(x)
    for i, (found, summary) in enumerate(zip(maps, case["features"], strict=True)):
        parity.check_summary(found, summary, 2e-5, f"map {i}")
    seeds = [torch.from_numpy(np.random.RandomState(7 + i).standard_normal(y.shape)) for i, y in enumerate(maps)]
    sum((y * seed).sum() for y, seed in zip(maps, seeds, strict=True)).backward()
    parity.check_summary(x.grad, case["grad_input"], 1e-4, "input gradient")


def test_plainmambas_official_detector(tmp_path):
    """On loading, as `pretrained`, and converted; tests/models/test_adapter.py compares the numbers."""
    weights = official("_unit_adapter")
    model = adapted()
    model.load_state_dict(weights)
    own = model.state_dict()
    assert torch.equal(own["backbone.adapter.prior.projections.3.bias"], weights["backbone.spm.fc4.bias"])
    assert torch.equal(own["backbone.model.model.blocks.3.mixer.Ds"], weights["backbone.layers.3.mamba.D"])
    assert model.backbone.channels == [32] * 4 and model.backbone.strides == [4, 8, 16, 32]

    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "in.pth")
    other = adapted(pretrained=str(tmp_path / "in.pth")).state_dict()
    assert other.keys() == own.keys() and all(torch.equal(other[name], value) for name, value in own.items())

    assert "a detector" in convert_checkpoint(tmp_path / "in.pth", tmp_path / "out.safetensors", "plainmamba_pico")
    converted = load_file(tmp_path / "out.safetensors")
    assert converted.keys() == own.keys()  # of images of 224 pixels, whatever it was trained on
    assert all(torch.equal(converted[name], value) for name, value in own.items() if "pos_embed" not in name)


def test_plainmambas_official_segmentor():
    """New norms on all maps but the last, which has the net's own."""
    weights = official("_unit")
    for i in range(3):
        weights |= {f"backbone.norm_layer{i}.{part}": torch.full((32,), i + 0.5) for part in ("weight", "bias")}
    model = Detector("plainmamba_pico", stem_convs=2, img_size=64).eval()
    model.load_state_dict(weights)
    record = parity.load("plainmamba")["variants"]["_unit"]["cases"][0]
    with torch.no_grad():
        maps = model(parity.image(record))
    parity.check_summary(maps[3], record["features"][3], 2e-5, "last map")
    for i in range(3):
        torch.testing.assert_close(maps[i].mean(), torch.tensor(i + 0.5))  # what the norm adds


def test_a_classifiers_weights_leave_the_adapter_as_it_is(tmp_path):
    torch.save({"state_dict": official("_unit_adapter")}, tmp_path / "detector.pth")
    donor = adapted(pretrained=str(tmp_path / "detector.pth")).backbone.model.model.state_dict()
    torch.save(
        {"state_dict": donor | {"norm.weight": torch.ones(32), "norm.bias": torch.ones(32)}}, tmp_path / "in.pth"
    )
    backbone = adapted(pretrained=str(tmp_path / "in.pth")).backbone
    assert all(torch.equal(backbone.model.model.state_dict()[name], value) for name, value in donor.items())
    assert not backbone.adapter.interactions[0].injector.gamma.any()


def test_an_adapter_that_cannot_be_placed_is_refused(tmp_path):
    torch.save({"state_dict": official("_unit_adapter")}, tmp_path / "detector.pth")
    with pytest.raises(CheckpointError, match="give this one adapter=dict()"):
        VSSMBackbone("plainmamba_pico", pretrained=str(tmp_path / "detector.pth"), img_size=64, out_norm=False)
    for name, options, text in [
        ("vmamba_pico", {}, "VMamba is none"),
        ("deit_tiny_patch16_224", {}, "dynamic_img_size=True"),
        ("vim_pico", dict(heads=4), "heads"),
        ("vim_pico", dict(num_heads=5), "must divide the width 32"),
    ]:
        with pytest.raises(ModelError, match=text):
            VSSMBackbone(name, adapter=options)


def test_a_plain_net_gives_the_ends_of_its_quarters():
    with torch.device("meta"):
        backbone = VSSMBackbone("deit_tiny_patch16_224", adapter=dict(num_heads=3), dynamic_img_size=True)
        assert backbone.out_indices == backbone.adapter.last_blocks == (2, 5, 8, 11)
        assert VSSMBackbone("vim_pico", depth=24).out_indices == (5, 11, 17, 23)
        assert VSSMBackbone("vim_pico").out_indices == VSSMBackbone("vmamba_pico").out_indices == (0, 1, 2, 3)


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_the_simple_feature_pyramid(size):
    neck = SimpleFeaturePyramid([12], out_channels=8)
    x = torch.randn(2, 12, *size)
    levels = neck([x])
    expected = [(2, 8, *(-(-side * 4 // 2**i) for side in size)) for i in range(5)]
    assert [tuple(y.shape) for y in levels] == expected
    sum(y.square().sum() for y in levels).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in neck.parameters())
    for y in levels[:4]:  # a LayerNorm of the channels is the last step
        torch.testing.assert_close(y.mean(1), torch.zeros_like(y[:, 0]), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="takes one map"):
        SimpleFeaturePyramid([12, 12])


def test_a_frozen_net_trains_its_adapter():
    backbone = VSSMBackbone("plainmamba_pico", adapter=ADAPTED, frozen_stages=4, drop_path_rate=0.1).train()
    sum(y.square().sum() for y in backbone(torch.randn(2, 3, 64, 64))).backward()
    trained = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in backbone.named_parameters() if name.startswith("adapter.")}
    assert not backbone.model.model.blocks.training and backbone.adapter.training


def test_a_detector_that_wants_masks_of_padded_batches(tmp_path):
    """Images of two odd sizes in one batch, which mmdet fills up and masks for a DETR."""
    torch.manual_seed(0)
    path = tmp_path / "detr.py"
    path.write_text('_base_ = ["mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py"]')
    model = Config.fromfile(path).model
    model.backbone = dict(type="VSSMBackbone", model_name="plainmamba_pico", adapter=ADAPTED)
    model.update(neck=dict(model.neck, in_channels=[32] * 4), num_queries=20)
    model.data_preprocessor.pad_size_divisor = 1
    model.encoder.num_layers = model.decoder.num_layers = 1
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = MODELS.build(model)
    detector.init_weights()  # until then mmdet has parameters with whatever lay in memory
    data = detector.data_preprocessor(demo_mm_inputs(2, [[3, 70, 101], [3, 64, 83]], num_classes=2), True)
    assert data["inputs"].shape == (2, 3, 70, 101)
    loss, _ = detector.parse_losses(detector(**data, mode="loss"))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in detector.backbone.adapter.parameters())

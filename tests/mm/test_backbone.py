"""The backbone for mmdet and mmseg."""

import mmdet.registry
import mmseg.registry
import pytest
import timm
import torch
from torch import nn

from vssm._errors import UserError
from vssm.engine import CheckpointError, ConfigError, TimmOptimWrapperConstructor
from vssm.engine.classifier import ModelError
from vssm.mm import FinerFPN, VSSMBackbone
from vssm.models import DenseMaps, families, family_of

PICOS = [name for family in families() for name in family.variants if name.endswith("_pico")]
OTHERS = {"resnet10t": dict(out_indices=(1, 2, 3, 4)), "swin_tiny_patch4_window7_224": dict(depths=(1, 1, 1, 1))}


def options(name):
    return OTHERS.get(name) or dict(out_indices=tuple(range(len(timm.create_model(name, device="meta").feature_info))))


@pytest.mark.parametrize("name", [*PICOS, *OTHERS])
def test_maps_are_those_of_timm(name):
    torch.manual_seed(0)
    backbone = VSSMBackbone(name, **options(name), **({"strict_img_size": False} if "swin" in name else {})).eval()
    x = torch.randn(1, 3, 72, 100)
    with torch.no_grad():
        maps = backbone(x)
        plain = backbone.model.model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW")
    expected = [plain[i] for i in backbone.out_indices]
    assert [y.shape[1] for y in maps] == backbone.channels
    for y, stride in zip(maps, backbone.strides, strict=True):
        assert abs(y.shape[2] - 72 / stride) <= 1.5 and abs(y.shape[3] - 100 / stride) <= 1.5
    norms = [name for name, _ in backbone.named_children() if name.startswith("outnorm")]
    family = family_of(name)
    if family and family.dense_maps is DenseMaps.OWN_NORM:
        norm = backbone.model.model.norm
        expected[-1] = norm(expected[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    elif family and family.dense_maps is DenseMaps.NEW_NORMS:
        assert norms == ["outnorm0", "outnorm1", "outnorm2", "outnorm3"]
        expected = [nn.functional.layer_norm(y.movedim(1, -1), y.shape[1:2]).movedim(-1, 1) for y in expected]
    elif family and family.dense_maps is DenseMaps.NEW_AND_OWN_NORMS:
        assert norms == ["outnorm0", "outnorm1", "outnorm2"] and backbone.outnorm0.eps == family.dense_norm_eps
        torch.nn.init.normal_(backbone.model.model.norm.bias)  # the norms must differ
        maps, expected = backbone(x), [y.movedim(1, -1) for y in expected]
        expected[:3] = [nn.functional.layer_norm(y, y.shape[-1:], eps=1e-6) for y in expected[:3]]
        expected[3] = backbone.model.model.norm(expected[3])
        expected = [y.movedim(-1, 1) for y in expected]
    else:
        assert not norms
    torch.testing.assert_close(list(maps), expected)


def test_both_registries_find_it_and_no_norm_is_no_norm():
    for registry in (mmdet.registry.MODELS, mmseg.registry.MODELS):
        backbone = registry.build(dict(type="VSSMBackbone", model_name="vmamba_pico", out_indices=(1, 3)))
        assert backbone.channels == [64, 256] and backbone.strides == [8, 32]
        assert {name.split(".")[0] for name in backbone.state_dict()} == {"model", "outnorm1", "outnorm3"}
    assert not hasattr(VSSMBackbone("vmamba_pico", out_norm=False), "outnorm0")
    assert VSSMBackbone("vmamba_pico", in_chans=5)(torch.randn(1, 5, 32, 32))[0].shape == (1, 32, 8, 8)


@pytest.mark.parametrize("name", PICOS)
def test_every_trained_parameter_has_a_gradient(name):
    backbone = VSSMBackbone(name, **options(name))
    sum(y.square().sum() for y in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ["vmamba_pico", "vssd_pico", "vssm_efficientvim_pico"])
def test_checkpointing_gives_equal_gradients(name):
    x = torch.randn(2, 3, 64, 64)

    def gradients(with_cp):
        torch.manual_seed(0)
        backbone = VSSMBackbone(name, with_cp=with_cp, drop_path_rate=0.3, norm_eval=True, **options(name))
        stages = backbone.model.model.stages
        assert all(stage.grad_checkpointing == with_cp for stage in stages)
        torch.manual_seed(1)
        sum(y.square().mean() for y in backbone(x)).backward()
        return {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and len(plain) > 50
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value, msg=key)


@pytest.mark.parametrize("name", ["efficientvmamba_pico", "resnet10t"])
@pytest.mark.parametrize("frozen_stages", [-1, 0, 2])
def test_frozen_stages_stay_as_they_are(name, frozen_stages):
    backbone = VSSMBackbone(name, frozen_stages=frozen_stages, **options(name)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(y.square().sum() for y in backbone(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    after = backbone.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    if name == "resnet10t":
        frozen = ("model.model.conv1", "model.model.bn1", "model.model.layer1", "model.model.layer2")
        frozen = {-1: (), 0: frozen[:2], 2: frozen}[frozen_stages]
    else:
        frozen = ("model.model.stem", "model.model.stages.0", "model.model.stages.1")
        frozen = {-1: (), 0: frozen[:1], 2: frozen}[frozen_stages]
    assert not [key for key in changed if key.startswith(frozen) and frozen]
    running = {key for key in before if key.endswith("running_mean") and not (frozen and key.startswith(frozen))}
    assert running and running <= changed
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained and trained.isdisjoint(key for key in before if frozen and key.startswith(frozen))
    assert backbone.model.model.training
    assert all(not module.training for part in backbone._frozen for module in part.modules())


def test_norm_eval_freezes_statistics_alone():
    backbone = VSSMBackbone("vssm_efficientvim_pico", out_indices=(0, 1, 2), norm_eval=True).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running" in key}
    sum(y.sum() for y in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert before and all(torch.equal(backbone.state_dict()[key], value) for key, value in before.items())
    norm = next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.grad is not None


def test_init_weights_keeps_what_was_loaded():
    backbone = VSSMBackbone("vmamba_pico")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (dict(model_name="vmamba_pikko"), ModelError, "did you mean"),
        (dict(model_name="vmamba_pico", depth=3), ModelError, "depth"),
        (dict(model_name="vmamba_pico", out_indices=(0, 4)), ModelError, "no feature maps"),
        (dict(model_name="vmamba_pico", frozen_stages=9), ConfigError, "from -1 to 4"),
        (dict(model_name="vmamba_pico", pretrained="nowhere.pth"), CheckpointError, "nowhere.pth"),
        (dict(model_name="vmamba_pico", pretrained=True), ModelError, "no published weights"),
        (dict(model_name="vmamba_pico", init_cfg=dict(type="Xavier")), ConfigError, "Pretrained"),
    ],
)
def test_mistakes_are_errors(arguments, error, text):
    with pytest.raises(error, match=text) as caught:
        VSSMBackbone(**arguments)
    assert isinstance(caught.value, UserError)


class Detector(nn.Module):
    def __init__(self, **backbone):
        super().__init__()
        self.backbone = VSSMBackbone("vmamba_pico", **backbone)
        self.neck = nn.Conv2d(256, 4, 1)


def test_layer_decay_from_stem_to_neck():
    cfg = dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05))
    detector = Detector()
    wrapper = TimmOptimWrapperConstructor(cfg, dict(layer_decay=0.5))(detector)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert len(groups) == len([p for p in detector.parameters() if p.requires_grad])
    depth = sum(len(stage.blocks) for stage in detector.backbone.model.model.stages)
    for name, parameter in detector.named_parameters():
        group = groups[id(parameter)]
        inner = name.removeprefix("backbone.model.model.")
        spared = parameter.ndim == 1 or inner.rpartition(".")[2] in ("A_logs", "Ds", "dt_projs_bias")
        assert group["weight_decay"] == (0.0 if spared else 0.05), name
        if name.startswith(("neck", "backbone.outnorm")):
            assert group["lr"] == 1.0, name
        if inner.startswith("stages.0.blocks.0."):
            assert group["lr"] == pytest.approx(0.5**depth), name
        if inner.startswith("stem."):
            assert group["lr"] == pytest.approx(0.5 ** (depth + 1)), name


def test_frozen_stages_take_no_part_in_layer_decay():
    detector = Detector(frozen_stages=2)
    cfg = dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.05))
    wrapper = TimmOptimWrapperConstructor(cfg, dict(layer_decay=0.5))(detector)
    optimised = {id(p) for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in detector.parameters() if p.requires_grad}
    assert max(group["lr"] for group in wrapper.optimizer.param_groups) == 1.0


def test_layer_decay_needs_layers():
    cfg = dict(optimizer=dict(type="AdamW", lr=1.0))
    with pytest.raises(ConfigError, match="group_matcher"):
        TimmOptimWrapperConstructor(cfg, dict(layer_decay=0.5))(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("finer", "extra", "sizes"),
    [
        (2, False, [(20, 24), (10, 12), (5, 6), (3, 3), (2, 2)]),
        (1, "on_input", [(10, 12), (5, 6), (3, 3), (2, 2), (1, 1)]),
        (0, False, [(5, 6), (3, 3), (2, 2), (1, 1), (1, 1)]),
    ],
)
def test_finer_fpn(finer, extra, sizes):
    """Levels of EfficientViM's Mask R-CNN (strides 4 to 64), its RetinaNet (8 to 128), and of none finer."""
    torch.manual_seed(0)
    neck = FinerFPN([8, 12, 16], 6, num_outs=5, num_finer=finer, add_extra_convs=extra)
    maps = [torch.randn(2, 8, 5, 6), torch.randn(2, 12, 3, 3), torch.randn(2, 16, 2, 2)]
    levels = neck(maps)
    assert [y.shape for y in levels] == [(2, 6, *size) for size in sizes]
    sum(y.square().sum() for y in levels).backward()
    assert all(p.grad is not None for p in neck.parameters())
    # The maps are normalised first: their scale does not matter.
    scaled = neck([100 * x for x in maps])
    torch.testing.assert_close(scaled, levels, rtol=1e-3, atol=1e-3)


def test_detector_with_efficientvim_and_its_neck(tmp_path):
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    config = tmp_path / "retinanet.py"
    config.write_text('_base_ = ["mmdet::_base_/models/retinanet_r50_fpn.py"]')
    model = Config.fromfile(config).model
    model.backbone = dict(
        type="VSSMBackbone", model_name="vssm_efficientvim_pico", out_indices=(0, 1, 2), norm_eval=True
    )
    model.neck = dict(
        type="FinerFPN", in_channels=[32, 48, 64], out_channels=16, num_outs=5, num_finer=1, add_extra_convs="on_input"
    )
    model.bbox_head.update(num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1)
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = mmdet.registry.MODELS.build(model)
    detector.init_weights()
    data = detector.data_preprocessor(demo_mm_inputs(2, [[3, 64, 96], [3, 64, 64]], num_classes=2), True)
    loss, _ = detector.parse_losses(detector(**data, mode="loss"))
    loss.backward()
    missing = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []

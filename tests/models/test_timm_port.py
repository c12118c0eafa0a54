"""EfficientViM and timm's own port of it take each other's weights, both ways and from the hub; and its deployment."""

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch.nn import BatchNorm2d

from tests import parity
from vssm.models.efficientvim import FAMILY, checkpoint_filter_fn, to_timm_state_dict

from .tester import assert_same

NAMES = [name.removeprefix("vssm_") for name in FAMILY.variants if not name.endswith("_pico")]
# The dist variants differ in their heads, the sizes in widths alone, which `small` takes away.
KINDS = ["efficientvim_m1", "efficientvim_m1_dist"]
SMALL = dict(dims=(16, 24, 32), depths=(1, 2, 1))


def small(name="efficientvim_m1", **kwargs):
    """Ours and timm's, the same small variant, both at random."""
    torch.manual_seed(0)
    ours = timm.create_model(f"vssm_{name}", d_state=(9, 4, 2), **SMALL, **kwargs)
    theirs = dict(embed_dim=SMALL["dims"], depths=SMALL["depths"])
    return ours, timm.create_model(name, state_dim=(9, 4, 2), **theirs, **kwargs)


def randomise(model):
    """Statistics and affine parameters as after training, so that nothing is hidden by a one or a zero."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.dim() < 3:
            tensor.add_(0.3 * torch.randn_like(tensor))
    return model.eval()


def official(weights: dict) -> dict:
    """timm's layout to the official one: norms over channels have more dimensions."""
    norms = {name: value for name, value in weights.items() if name.startswith("norm.") or ".blocks." in name}
    norms = {n: v for n, v in norms.items() if n.rsplit(".", 2)[-2] == "norm" and n.split(".")[-3].isdigit()}
    norms |= {n: v for n, v in weights.items() if n.startswith("norm.")}
    return {n: v[None, :, None, None] if n.startswith("norm.3.") else v[None, :, None] for n, v in norms.items()}


@pytest.mark.parametrize("name", NAMES)
def test_structure(name):
    """The same parameters, surface, default configuration and weights on the hub as timm's model of the variant."""
    ours = timm.create_model(f"vssm_{name}", device="meta").eval()
    theirs = timm.create_model(name, device="meta").eval()
    converted = {n: v.shape for n, v in to_timm_state_dict(ours).items()}
    assert converted == {n: v.shape for n, v in theirs.state_dict().items()}
    for attribute in ("num_features", "head_hidden_size", "num_classes", "embed_dim", "global_pool"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert [i["num_chs"] for i in ours.feature_info] == [i["num_chs"] for i in theirs.feature_info]
    assert [i["reduction"] for i in ours.feature_info] == [i["reduction"] for i in theirs.feature_info]
    for field in ("input_size", "crop_pct", "interpolation", "mean", "std", "pool_size", "license"):
        assert ours.pretrained_cfg[field] == theirs.pretrained_cfg[field]
    for tag in FAMILY.module.default_cfgs[f"vssm_{name}"].tags:
        ids = {timm.get_pretrained_cfg(f"{prefix}{name}.{tag}").hf_hub_id for prefix in ("vssm_", "")}
        assert ids == {f"timm/{name}.{tag}"}
    x = torch.empty(1, 3, 224, 160, device="meta")
    assert [f.shape for f in ours.forward_features(x)] == [f.shape for f in theirs.forward_features(x)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
@torch.no_grad()
def test_outputs_both_ways(name, size):
    ours, theirs = (randomise(m.double()) for m in small(name))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert not torch.allclose(ours(x), theirs(x))
    theirs.load_state_dict(to_timm_state_dict(ours))
    assert torch.allclose(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    randomise(theirs)
    ours.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), ours))
    assert torch.allclose(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    got, want = ours.forward_intermediates(x, norm=True), theirs.forward_intermediates(x, norm=True)
    for a, b in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(96, 96), (96, 128)])
def test_gradients(size):
    """In float64 and with the weights of the parity vectors, which float32 knows to three digits."""
    record = parity.load("efficientvim")["variants"]["efficientvim_m1"]
    ours = timm.create_model("vssm_efficientvim_m1").double().eval()
    ours.load_state_dict(checkpoint_filter_fn(parity.state_dict(record, "v2", torch.float64), ours))
    theirs = timm.create_model("efficientvim_m1").double().eval()
    theirs.load_state_dict(to_timm_state_dict(ours))
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    for model in (ours, theirs):
        parity.loss(model(x)).backward()
    wanted = dict(theirs.named_parameters())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.grad)
    for name, grad in to_timm_state_dict(ours).items():
        if name in wanted and not name.endswith(".mixer.A"):
            assert (grad - wanted[name].grad).norm() <= 1e-6 * wanted[name].grad.norm() + 1e-9, name


@pytest.mark.parametrize(("key", "prefix"), [("model", ""), ("model_ema", "module."), ("state_dict", "module.module.")])
def test_layouts(key, prefix):
    """Official shapes, timm's and ours to the same weights."""
    ours, _ = small()
    weights = to_timm_state_dict(ours)
    theirs = {**weights, **official(weights)}
    assert sum(theirs[n].shape != weights[n].shape for n in weights) == 2 * (4 + 4)
    for layout in (weights, theirs, ours.state_dict()):
        nested = {key: {prefix + n: v for n, v in layout.items()}, "epoch": 3}
        assert_same(checkpoint_filter_fn(nested, ours), ours.state_dict())


@pytest.mark.parametrize(("name", "tag"), zip(KINDS, ["e450_in1k", "in1k"], strict=True))
def test_pretrained_comes_from_the_hub(monkeypatch, name, tag):
    """The whole path of `pretrained=True`, with the hub's answer made here; also with other classes and channels."""
    source, theirs = small(name)
    theirs.load_state_dict(to_timm_state_dict(source))
    asked = []

    def answer(repo, *args, **kwargs):
        asked.append(repo)
        return dict(theirs.state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", answer)
    args = dict(d_state=(9, 4, 2), **SMALL)
    model = timm.create_model(f"vssm_{name}", pretrained=True, **args)
    assert asked == [f"timm/{name}.{tag}"]
    assert_same(model.state_dict(), source.state_dict())
    other = timm.create_model(f"vssm_{name}", pretrained=True, num_classes=5, in_chans=1, **args)
    assert other.head.fcs[3].weight.shape == (5, 32)
    summed = source.stem.convs[0].conv.weight.sum(1, keepdim=True)
    assert torch.allclose(other.stem.convs[0].conv.weight, summed, atol=1e-6)
    for kwargs in (dict(num_classes=0), dict(features_only=True)):
        headless = timm.create_model(f"vssm_{name}", pretrained=True, **kwargs, **args)
        headless = getattr(headless, "model", headless)
        assert torch.equal(headless.stages[2].blocks[0].alpha, source.stages[2].blocks[0].alpha)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_merged_for_deployment(name):
    model = randomise(small(name)[0].double())
    fused = reparameterize_model(model)
    x = torch.randn(2, 3, 75, 101, dtype=torch.float64)
    assert torch.allclose(fused(x), model(x), rtol=1e-9, atol=1e-9)
    assert any(isinstance(m, BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, BatchNorm2d) for m in fused.modules())
    for a, b in zip(fused.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    assert torch.allclose(torch.jit.script(fused)(x), fused(x))
    with pytest.raises(ValueError, match="to_timm_state_dict"):
        to_timm_state_dict(fused)


def test_unused_weights_of_the_head_are_not_trained():
    model, _ = small(num_classes=0)
    assert not model.head.mix.requires_grad
    model.reset_classifier(3)
    assert model.head.mix.requires_grad


def test_dropped_branches_leave_their_input():
    """Which gates of their own (alpha) mix with it in every block; in eval mode nothing is dropped."""
    model, _ = small(drop_path_rate=0.999)
    block = model.stages[2].blocks[0]
    x = torch.randn(4, 2, 3, 32)
    torch.manual_seed(1)
    assert torch.allclose(block.train()(x)[0], x)
    assert not torch.allclose(block.eval()(x)[0], x)

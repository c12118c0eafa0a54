"""EfficientViM beyond its parity vectors: timm's own port both ways, checkpoints, distillation, deployment, errors."""

import pytest
import timm
import torch
from timm.models import reparameterize_model
from torch.nn import BatchNorm2d

from tests import parity
from vssm.models.efficientvim import FAMILY, checkpoint_filter_fn, to_timm_state_dict
from vssm.profiling import paper_flops

from .tester import FamilyTester, Official, assert_same

# Parameters in all.
VARIANTS = {
    "efficientvim_m1": 6_679_458,
    "efficientvim_m2": 13_903_842,
    "efficientvim_m3": 16_604_174,
    "efficientvim_m4": 19_606_505,
    "efficientvim_m1_dist": 7_643_462,
    "efficientvim_m2_dist": 15_315_846,
    "efficientvim_m3_dist": 18_176_178,
    "efficientvim_m4_dist": 21_178_509,
}
SMALL = dict(dims=(16, 24, 32), depths=(1, 2, 1))


class TestEfficientViM(FamilyTester):
    family = FAMILY
    parameters = {**{f"vssm_{name}": count for name, count in VARIANTS.items()}, "vssm_efficientvim_pico": 414_199}
    checkpoints = {
        "m1": Official("efficientvim", "efficientvim_m1", "vssm_efficientvim_m1", dict(depths=(1, 1, 1)), rules="v2")
    }
    missing = [
        (
            "m1",
            "stages.0.downsample.conv.2.fc1.bias",
            "missing stages.1.downsample.se.fc1.bias; unexpected none",
        )
    ]
    misfits = [("m1", dict(dims=(64, 192, 320)), ("wrong shape",))]
    refused = [
        ("vssm_efficientvim_m1", dict(depths=(1, 1)), ("(128, 192, 320)", "(1, 1)")),
        ("vssm_efficientvim_m1", dict(d_state=(1, 1)), ("(1, 1)", "(2, 2, 2)")),
        ("vssm_efficientvim_m1", dict(global_pool="max"), ("'avg'", "'max'")),
        ("vssm_efficientvim_m1", dict(global_pool=""), ("num_classes=0", "1000")),
    ]
    spared = {"A", "D"}


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


@pytest.mark.parametrize("name", VARIANTS)
def test_structure_of_timm(name):
    """The same parameters, surface and default configuration as timm's model of the variant."""
    ours = timm.create_model(f"vssm_{name}", device="meta").eval()
    theirs = timm.create_model(name, device="meta").eval()
    assert sum(p.numel() for p in ours.parameters()) == VARIANTS[name]
    converted = {n: v.shape for n, v in to_timm_state_dict(ours).items()}
    assert converted == {n: v.shape for n, v in theirs.state_dict().items()}
    for attribute in ("num_features", "head_hidden_size", "num_classes", "embed_dim", "global_pool"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert [i["num_chs"] for i in ours.feature_info] == [i["num_chs"] for i in theirs.feature_info]
    assert [i["reduction"] for i in ours.feature_info] == [i["reduction"] for i in theirs.feature_info]
    for field in ("input_size", "crop_pct", "interpolation", "mean", "std", "pool_size", "license"):
        assert ours.pretrained_cfg[field] == theirs.pretrained_cfg[field]
    x = torch.empty(1, 3, 224, 160, device="meta")
    assert [f.shape for f in ours.forward_features(x)] == [f.shape for f in theirs.forward_features(x)]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [(64, 64), (75, 101)])
@torch.no_grad()
def test_outputs_of_timm_both_ways(name, size):
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
def test_gradients_of_timm(size):
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


@pytest.mark.parametrize(("name", "mega"), [("m1", 238.9), ("m2", 355.1), ("m3", 656.0), ("m4", 1111.9)])
def test_published_flops(name, mega):
    pytest.importorskip("fvcore")
    model = timm.create_model(f"vssm_efficientvim_{name}")
    size = model.pretrained_cfg["input_size"]
    assert round(paper_flops(model, size, ("aten::layer_norm", "aten::mean")) / 1e6, 1) == mega


# ---- checkpoints


@pytest.mark.parametrize("key", ["model", "model_ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_layouts(key, prefix):
    """Official shapes, timm's and ours, nested or not, to the same weights."""
    ours, _ = small()
    weights = to_timm_state_dict(ours)
    theirs = {**weights, **official(weights)}
    assert sum(theirs[n].shape != weights[n].shape for n in weights) == 2 * (4 + 4)
    for layout in (weights, theirs, ours.state_dict()):
        nested = {key: {prefix + n: v for n, v in layout.items()}, "epoch": 3}
        assert_same(checkpoint_filter_fn(nested, ours), ours.state_dict())


def test_plain_model_drops_the_second_head():
    distilled, _ = small("efficientvim_m1_dist")
    plain, _ = small()
    for weights in (distilled.state_dict(), to_timm_state_dict(distilled)):
        fitted = checkpoint_filter_fn(weights, plain)
        plain.load_state_dict(fitted)
        assert torch.equal(plain.head.fcs[0].weight, distilled.head.fcs[0].weight)
    with pytest.raises(ValueError, match=r"head_dist\.mix"):
        checkpoint_filter_fn(plain.state_dict(), distilled)


@pytest.mark.parametrize("name", VARIANTS)
def test_published_weights_are_those_of_timm(name):
    """The ids are timm's own, and the longer training is the default."""
    tags = ["in1k"] if name.endswith("dist") else ["e450_in1k", "e300_in1k"]
    assert timm.get_pretrained_cfg(f"vssm_{name}").tag == tags[0]
    for tag in tags:
        assert timm.get_pretrained_cfg(f"vssm_{name}.{tag}").hf_hub_id == f"timm/{name}.{tag}"
        assert timm.get_pretrained_cfg(f"{name}.{tag}").hf_hub_id == f"timm/{name}.{tag}"


@pytest.mark.parametrize(("name", "tag"), [("efficientvim_m1", "e450_in1k"), ("efficientvim_m1_dist", "in1k")])
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


# ---- behaviour


def test_distilled_training():
    model, _ = small("efficientvim_m1_dist", num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    assert model.train()(x).shape == (2, 3)  # as timm's port, until distillation is asked for
    model.set_distilled_training()
    z, z_dist = model(x)
    assert z.shape == z_dist.shape == (2, 3) and not torch.equal(z, z_dist)
    model.set_distilled_training(False)
    assert model(x).shape == (2, 3)
    model.set_distilled_training()
    model.eval()
    features = model.pool(model.forward_features(x))
    assert torch.equal(model(x), (model.head(features) + model.head_dist(features)) / 2)
    head, head_dist = model.get_classifier()
    assert head is model.head.fcs and head_dist is model.head_dist.fcs
    model.reset_classifier(4)
    assert model(x).shape == (2, 4) and model.train()(x)[1].shape == (2, 4)


def test_unused_weights_of_the_head_are_not_trained():
    model, _ = small(num_classes=0)
    assert not model.head.mix.requires_grad
    model.reset_classifier(3)
    assert model.head.mix.requires_grad


@pytest.mark.parametrize("name", ["efficientvim_m1", "efficientvim_m1_dist"])
@torch.no_grad()
def test_reparameterize(name):
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


@pytest.mark.parametrize("indices", [(0, 1), (0, 2), (0,)])
@torch.no_grad()
def test_prune(indices):
    whole, _ = small()
    pruned, _ = small()
    pruned.load_state_dict(whole.state_dict())
    whole.eval()
    pruned.eval()
    x = torch.randn(2, 3, 64, 96)
    want = whole.forward_intermediates(x, indices=indices, intermediates_only=True)
    assert pruned.prune_intermediate_layers(indices) == list(indices)
    got = pruned.forward_intermediates(x, indices=indices, intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(got, want, strict=True)] == [True] * len(indices)
    features = pruned(x)
    assert sum(f.shape[1] for f in features) == pruned.num_features
    pruned.reset_classifier(0, "avg")
    assert pruned(x).shape == (2, pruned.num_features)


@torch.no_grad()
def test_prune_to_one_stage_keeps_a_classifier_possible():
    model, _ = small()
    model.eval().prune_intermediate_layers((0,))
    model.reset_classifier(3, "avg")
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_stochastic_depth():
    """Dropped branches leave their input; in eval mode nothing is dropped."""
    model, _ = small(drop_path_rate=0.999)
    block = model.stages[2].blocks[0]
    x = torch.randn(4, 2, 3, 32)
    torch.manual_seed(1)
    assert torch.allclose(block.train()(x)[0], x)
    assert not torch.allclose(block.eval()(x)[0], x)


def test_initial_parameters():
    model = timm.create_model("vssm_efficientvim_m1")
    bound = 128**-0.5
    for name, p in model.named_parameters():
        if name.endswith("alpha"):
            assert (p == 1e-4).all()
        elif name.endswith((".norm.weight", ".D", ".mix")):
            assert (p == 1).all()
        elif name.endswith("mixer.A"):
            assert p.min() >= 1 and p.max() <= 16
        elif ".fcs." in name and name.endswith("weight"):
            assert 0.018 < p.std() < 0.022
    point_wise = model.stages[0].blocks[0].ffn.fc1.linear.weight
    assert 0.95 * bound < point_wise.abs().max() <= bound

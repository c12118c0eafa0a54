"""Checks timm's demands on a backbone for every name that this package registers; a new family is covered at once.

The same demands as timm's own tests/test_models.py makes (its markers base, forward, backward, cfg, features, fx,
script).
"""

import fnmatch
import functools
import math
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters

import vssm
from tests.small import few_blocks, few_stages
from vssm.layers.classifier import POOLS
from vssm.models import PlainBackbone

NAMES = vssm.list_models()
# Models that are the same but for widths and depths. The first of each group stands for it where values are computed;
# `test_only_sizes_differ` holds it to that. A name in no group is tested itself.
GROUPS = [
    *(tuple(f"vmamba_{size}_{form}" for size in ("tiny", "small", "base")) for form in ("v0", "m2")),
    ("vmamba_tiny_s2l5", "vmamba_small_s2l15", "vmamba_base_s2l15"),
    ("vmamba_pico", "vmamba_tiny_s1l8", "vmamba_small_s1l20", "vmamba_base_s1l20"),
    ("msvmamba_pico", "msvmamba_nano", "msvmamba_micro", "msvmamba_tiny"),
    ("msvmambav3_pico", "msvmambav3_tiny", "msvmambav3_small"),
    ("vssd_pico", "vssd_micro", "vssd_tiny", "vssd_small"),
    *(
        tuple(f"{family}_{size}" for size in ("pico", "tiny", "small", "base"))
        for family in ("efficientvmamba", "groupmamba", "spatialmamba")
    ),
    ("segman_pico", "segman_tiny", "segman_small"),
    ("segman_base", "segman_large"),
    ("a2mamba_pico", "a2mamba_nano", "a2mamba_tiny"),
    ("a2mamba_base", "a2mamba_large"),
    ("mambayolo_pico", "mambayolo_tiny", "mambayolo_base", "mambayolo_large"),
    ("hrvmamba_pico", "hrvmamba_tiny"),
    ("plainmamba_pico", "plainmamba_l1"),
    ("plainmamba_l2", "plainmamba_l3"),
    ("vim_pico", *(f"vim_{size}_patch16_224" for size in ("tiny", "small", "base"))),
    tuple(f"vim_{size}_patch16_stride8_224" for size in ("tiny", "small")),
    tuple(f"vssm_efficientvim_{size}" for size in ("pico", "m1", "m2", "m3", "m4")),
    tuple(f"vssm_efficientvim_m{size}_dist" for size in (1, 2, 3, 4)),
]
OTHER_SIZES = {name for group in GROUPS for name in group[1:]}
SIZE = 96


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in OTHER_SIZES])
def name(request):
    return request.param


def small_options(name):
    """One block a stage; `test_contract` builds every name whole, and finds no other kinds of blocks there."""
    options = few_blocks(name)
    return few_blocks(name, 2) if "depth" in options else options  # a plain net has a map of each fourth of its blocks


@pytest.fixture(scope="module")
def small(name):
    """Of HRVMamba three branches of four, too: its maps come from one stage, and each branch costs as much as a net."""
    return dict(depths=(1, 1)) if name.startswith("hrvmamba") else small_options(name)


@pytest.fixture(scope="module")
def model(name, small):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=42, **small).eval()


@pytest.fixture(scope="module")
def of_two_stages(name):
    """For what takes long for each module: with all kinds of blocks, still."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=42, **few_stages(name)).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@functools.cache
def shallow(name):
    return timm.create_model(name, device="meta", **small_options(name))


def kinds_of_blocks(model):
    """By stage: names and types of the modules, names and shapes of the parameters."""
    return [
        {
            str([(n, type(m)) for n, m in block.named_modules() if n != "drop_path"])
            + str([(n, p.shape) for n, p in block.named_parameters()])
            for block in blocks
        }
        for blocks in ([model.blocks] if isinstance(model, PlainBackbone) else [stage.blocks for stage in model.stages])
    ]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0])
def test_only_sizes_differ(group):
    """Modules, strides and parameters by name, and inner widths that are about the same multiples of the widths."""

    def form(name):
        model = shallow(name)
        inner = {
            n: p.shape[0] / p.shape[1]
            for n, p in model.named_parameters()
            if n.endswith(("in_proj.weight", "fc1.weight"))
        }
        inner = {n: round(ratio) for n, ratio in inner.items() if ".se." not in n}
        modules = [(n, type(m), getattr(m, "stride", None)) for n, m in model.named_modules()]
        return modules, [n for n, _ in model.named_parameters()], inner

    first = form(group[0])
    assert all(form(name) == first for name in group[1:])


@torch.no_grad()
def test_forward_and_checkpointing(model, x):
    y = model(x)
    assert y.shape == (2, 42) and y.isfinite().all()
    model.set_grad_checkpointing(True)
    checkpointed = model(x)
    model.set_grad_checkpointing(False)
    assert torch.allclose(y, checkpointed, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(x).float()
    assert (rounded - y).norm() < 0.1 * y.norm()


@torch.no_grad()
def test_odd_size_and_batch_of_one(name, model):
    x = torch.randn(1, 3, 75, 101)
    y, maps = model.forward_intermediates(x)
    assert model.forward_head(y).isfinite().all()
    for info, m in zip(model.feature_info, maps, strict=True):
        for size, got in zip(x.shape[-2:], m.shape[-2:], strict=True):
            fewer = "stride8" in name  # patches that overlap, at a border that is not padded
            assert size // info["reduction"] - fewer <= got <= math.ceil(size / info["reduction"]) + 1


@torch.no_grad()
def test_an_empty_batch(name, model, small):
    """Gives empty results, as in timm's models."""
    x = torch.zeros(0, 3, SIZE, SIZE)
    assert model(x).shape == (0, 42)
    assert model.train()(x).shape == (0, 42)
    model.eval()
    assert all(b.isfinite().all() for b in model.buffers())
    whole = share_weights(model, name, **small, **all_maps(model))
    assert [m.shape[0] for m in whole(x)] == [0] * len(model.feature_info)
    assert [m.shape[1] for m in whole(x)] == whole.feature_info.channels()


def test_images_that_no_stem_takes(model):
    for shape in ((3, SIZE, SIZE), (2, 1, SIZE, SIZE), (2, SIZE, SIZE, 3)):
        with pytest.raises(ValueError, match=re.escape(f"images must have the shape (B, 3, H, W), got {shape}")):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"images must be at least (1 x 1|4 x 4|16 x 16) pixels, got 64 x 0$"):
        model(torch.zeros(2, 3, 64, 0))


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16-autocast"])
def test_every_parameter_gets_a_gradient(model, x, amp):
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        y = model(x)
        y = torch.cat(y) if isinstance(y, tuple) else y  # both heads of a distilled model
    y.float().square().mean().backward()
    model.eval()
    grads = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    assert y.isfinite().all()
    assert [n for n, g in grads.items() if g is None] == []
    assert [n for n, g in grads.items() if not g.isfinite().all()] == []


def share_weights(of, name, **kwargs):
    """Another model of this name with the same parameters, made on the meta device: initialising takes longest."""
    other = timm.create_model(name, device="meta", **kwargs).eval()
    target = getattr(other, "model", other)
    weights = {k: v for k, v in of.state_dict().items() if k in target.state_dict()}
    target.load_state_dict(weights, assign=True)
    return other


def all_maps(model):
    return dict(features_only=True, out_indices=tuple(range(len(model.feature_info))))


@torch.no_grad()
def test_features_only_is_nchw(name, model, small, x):
    backbone = share_weights(model, name, **small, **all_maps(model))
    channels = backbone.feature_info.channels()
    maps = backbone(x)
    assert channels == [info["num_chs"] for info in model.feature_info] and len(maps) == len(channels) >= 3
    for m, c, r in zip(maps, channels, backbone.feature_info.reduction(), strict=True):
        assert m.shape[:2] == (2, c) and m.shape[2] == m.shape[3] <= math.ceil(SIZE / r) + 1
    two = timm.create_model(name, **small, features_only=True, out_indices=(0, 2), device="meta")
    assert two.feature_info.channels() == [channels[0], channels[2]]


def as_list(features):
    """A family whose head looks at more than the last map has a list of features (EfficientViM, there and in timm)."""
    return features if isinstance(features, list) else [features]


@torch.no_grad()
def test_forward_intermediates(model, x):
    whole = model.forward_features(x)
    y, maps = model.forward_intermediates(x)
    assert type(y) is type(whole)
    for a, b in zip(as_list(y), as_list(whole), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)
    last = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NHWC", intermediates_only=True)
    raw = maps[-1].permute(0, 2, 3, 1)
    norm = model.norm[len(maps) - 1] if isinstance(model.norm, torch.nn.ModuleList) else model.norm
    assert len(last) == 1 and torch.allclose(last[0], norm(raw), rtol=1e-5, atol=1e-8)
    early = model.forward_intermediates(x, indices=(0, 1), stop_early=True, intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(early, maps[:2], strict=True)] == [True, True]


def test_fx_graph_is_bit_equal_and_differentiable(of_two_stages, x):
    model = of_two_stages
    graph = torch.fx.symbolic_trace(model)
    y = graph(x)
    assert torch.equal(y, model(x))
    with torch.no_grad():  # the model may run several layers as one pass then, the graph has them all
        assert torch.allclose(model(x), graph(x), rtol=1e-4, atol=1e-5)
    y.mean().backward()
    missing = [n for n, p in graph.named_parameters() if p.grad is None]
    model.zero_grad(set_to_none=True)
    assert missing == []


@torch.no_grad()
def test_torchscript(name, of_two_stages, x):
    model = of_two_stages
    with timm.layers.set_scriptable(True):
        scriptable = share_weights(model, name, **few_stages(name), num_classes=42)
    script = torch.jit.script(scriptable)
    assert torch.allclose(script(x), model(x), rtol=1e-4, atol=1e-5)
    # timm's train.py makes its optimiser from the scripted model, which asks it for the names that are not decayed.
    assert script.no_weight_decay() == model.no_weight_decay()


@torch.no_grad()
def test_torchscript_of_features(name, of_two_stages, x):
    backbone = share_weights(of_two_stages, name, **few_stages(name), **all_maps(of_two_stages))
    for got, want in zip(torch.jit.script(backbone)(x), backbone(x), strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    """Structure on the meta device; what follows from the kinds of blocks, with one block a stage."""
    whole, small = timm.create_model(name, num_classes=42, device="meta"), small_options(name)
    assert {p.device.type for p in [*whole.parameters(), *whole.buffers()]} == {"meta"}
    model = timm.create_model(name, device="meta", **small).eval()  # distilled, in training: both heads' logits
    assert kinds_of_blocks(whole) == kinds_of_blocks(model)
    names = [n for n, _ in whole.named_parameters()]
    cfg = model.pretrained_cfg
    for field in ("license", "origin_url", "paper_ids"):
        assert cfg[field], field
    for entry in (cfg["first_conv"], cfg["classifier"]):
        for layer in (entry,) if isinstance(entry, str) else entry:
            assert f"{layer}.weight" in names
    with pytest.raises(TypeError):
        timm.create_model(name, device="meta", not_an_argument=1)

    x = torch.empty(1, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    if isinstance(features, list):  # (B, C, L) each, with no one size that is pooled
        assert cfg["pool_size"] is None and sum(f.shape[1] for f in features) == model.num_features
    elif model.output_fmt == "NLC":  # of which the classifier looks at one token
        assert cfg["pool_size"] is None and features.shape[2] == model.num_features
    else:
        height, width = (1, 2) if model.output_fmt == "NHWC" else (2, 3)
        channel = 3 if model.output_fmt == "NHWC" else 1
        assert (features.shape[height], features.shape[width]) == tuple(cfg["pool_size"])
        assert features.shape[channel] == model.num_features
    shapes = [f.shape for f in as_list(features)]
    pre = model.forward_head(features, pre_logits=True)
    assert pre.shape[1] == model.head_hidden_size
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16
    model.to(torch.float32)

    model.reset_classifier(0)
    assert model.num_classes == 0 and model.forward_head(features).shape == pre.shape
    model.reset_classifier(0, "")
    assert [f.shape for f in as_list(model(x))] == shapes
    bare = timm.create_model(name, num_classes=0, device="meta", **small)
    assert bare.forward_head(features).shape == pre.shape
    unpooled = timm.create_model(name, num_classes=0, global_pool="", device="meta", **small)
    assert [f.shape for f in as_list(unpooled.forward_head(features))] == shapes

    model.to(dtype=torch.float64)
    model.reset_classifier(5)  # timm keeps the pooling, which has just been taken away, or brings it back
    heads = model.get_classifier()  # a distilled model has two
    for head in heads if isinstance(heads, tuple) else (heads,):
        parameters = list(head.parameters())
        assert parameters and all(p.device.type == "meta" and p.dtype == torch.float64 for p in parameters)

    groups = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    assert len(set(groups.values())) > sum(1 for _ in whole.feature_info)
    assert set(groups) == set(names)
    for pattern in whole.no_weight_decay():
        assert any(fnmatch.fnmatch(n, pattern) for n in names), pattern


# The others' heads begin with more than a pooling of the last map.
OF_ANY_POOLING = [n for n in vssm.list_models("*pico") if "groupmamba" not in n and "efficientvim" not in n]


@pytest.mark.parametrize("pico", OF_ANY_POOLING)
@torch.no_grad()
def test_poolings(pico, x):
    model, seen = timm.create_model(pico, num_classes=5, **few_stages(pico)).eval(), {}
    features = model.forward_features(x)
    for pool in POOLS:
        model.reset_classifier(5, pool)
        assert model.forward_head(features).shape == (len(x), 5)
        made = share_weights(model, pico, num_classes=5, global_pool=pool, **few_stages(pico))
        assert torch.equal(made(x), model(x))
        seen[pool] = model.forward_head(features, pre_logits=True)
    assert (seen["avg"] <= seen["max"]).all() and (seen["avg"] < seen["max"]).any()
    assert torch.allclose(seen["avgmax"], (seen["avg"] + seen["max"]) / 2)
    assert torch.equal(seen["catavgmax"], torch.cat([seen["avg"], seen["max"]], dim=1))
    model.reset_classifier(5)
    assert model(x).shape == (len(x), 5)
    with pytest.raises(ValueError, match="'avg', 'max', 'avgmax', 'catavgmax'.*, got 'mean'"):
        timm.create_model(pico, num_classes=5, global_pool="mean")
    if not isinstance(model, PlainBackbone):  # which classify each token then
        with pytest.raises(ValueError, match="num_classes=0, got 5"):
            model.reset_classifier(5, "")


def test_names_do_not_shadow_timm():
    files = Path(timm.models.__file__).parent.glob("*.py")  # timm's registry has ours in it
    theirs = {name for file in files for name in re.findall(r"^@register_model\s+def (\w+)", file.read_text(), re.M)}
    assert len(theirs) > 1000 and not set(NAMES) & theirs


@torch.no_grad()
def test_encoder_of_segmentation_models():
    smp = pytest.importorskip("segmentation_models_pytorch")
    net = smp.Unet("tu-vmamba_pico", encoder_weights=None, classes=3).eval()
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("vmamba_pico", dict(embed_dim=16), dict(dims=16)),
        ("msvmamba_pico", dict(embed_dim=16, depths=(1, 1)), dict(dims=(16, 32), depths=(1, 1))),
        ("vssm_efficientvim_pico", dict(embed_dim=(16, 24, 32)), dict(dims=(16, 24, 32))),
        (
            "groupmamba_pico",
            dict(embed_dims=(16, 32, 64, 64), mlp_ratios=(2, 2, 2, 2)),
            dict(dims=(16, 32, 64, 64), mlp_ratio=(2, 2, 2, 2)),
        ),
    ],
)
def test_arguments_go_by_their_old_names(name, old, new):
    models = [timm.create_model(name, device="meta", **options) for options in (old, new, {})]
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1] != shapes[2]

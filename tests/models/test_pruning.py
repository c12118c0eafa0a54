"""Token pruning of plain nets: against the records of the released code, and what holds for every plain net."""

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet

from tests import parity
from vssm.models import PlainBackbone, _pruning, families
from vssm.models.adapter import ViTAdapter
from vssm.models.create import ModelError, create_model
from vssm.models.plainmamba import PlainMamba
from vssm.models.vim import checkpoint_filter_fn
from vssm.profiling import count

RECORD = parity.load("token_pruning")["variants"]["_unit_vim"]
CASES = [*RECORD["cases"], RECORD["batch_of_two"]]
PLAIN = {
    "vim": ("vim_pico", {}),
    "vim without class token": ("vim_pico", dict(class_token=False, rope=True, halve=False)),
    "plainmamba": ("plainmamba_pico", dict(local_convs=(0, 2))),
}
SIZE, GRID = (80, 112), (5, 7)


@pytest.fixture(scope="module")
def official():
    model = timm.create_model("vim_pico", dim=24, depth=16, d_state=16, img_size=96, num_classes=10).eval()
    assert sum(p.numel() for p in model.parameters()) == RECORD["params"]
    model.load_state_dict(checkpoint_filter_fn(parity.state_dict(RECORD), model))
    return model


@pytest.mark.parametrize(
    ("case", "reading"),
    [
        pytest.param(case, reading, id=f"{reading}-{case['shape'][0]}-{case['seed']}")
        for reading in ("paper_score", "released", "dense")
        for case in CASES
        if reading in case
    ],
)
@torch.no_grad()
def test_records(official, case, reading, monkeypatch):
    """The tokens that each site keeps, index for index, and the logits."""
    official.set_pruning(() if reading == "dense" else (4, 9, 14), 0.8, as_released=reading == "released")
    found = []

    def recorded(score, count):
        found.append(select_tokens(score, count))
        return found[-1]

    select_tokens = _pruning.select_tokens
    monkeypatch.setattr(_pruning, "select_tokens", recorded)
    output = official(parity.image(case))
    middles = [37 // 2, 29 // 2, 23 // 2]
    if reading == "paper_score":  # chosen among the patches alone
        found = [x + (x >= middle) for x, middle in zip(found, middles, strict=True)]
    kept = case[reading].get("kept", [])
    assert [x.tolist() for x in found] == (kept if case["shape"][0] > 1 else [[site] for site in kept])
    expected = torch.tensor(case[reading]["output"])
    assert (output - expected.view_as(output)).abs().max() < 1e-4 * expected.std()


@pytest.fixture(params=PLAIN)
def net(request):
    name, options = PLAIN[request.param]
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, pruning=dict(sites=(0, 2), keep=0.6), **options).eval()


@torch.no_grad()
def test_fewer_tokens_and_whole_maps(net):
    """A pruned place keeps on every later map what it was when it was pruned."""
    x = torch.randn(2, 3, *SIZE)
    first, second = net.kept_patches(x)
    counts = (20, 12) if net.tokens.cls_token is not None else (21, 13)
    assert first.shape == second.shape == (2, *GRID) and not (second & ~first).any()
    assert (first.sum((1, 2)) == counts[0]).all() and (second.sum((1, 2)) == counts[1]).all()
    tokens, maps = net.forward_intermediates(x, output_fmt="NHWC")
    assert tokens.shape[1] == counts[1] + net.num_prefix_tokens and net.output_fmt == "NLC"
    assert torch.equal(tokens, net.forward_features(x)) and torch.equal(net(x), net.forward_head(tokens))
    assert torch.equal(maps[1][~first], maps[0][~first]) and torch.equal(maps[3][~second], maps[2][~second])
    assert (maps[1][first] != maps[0][first]).any(-1).all() and (maps[3][second] != maps[2][second]).any(-1).all()
    assert torch.equal(net.norm(maps[3])[second].view(2, counts[1], -1), net.tokens.split(tokens)[0])
    net.set_pruning()
    assert net.kept_patches(x) == []
    # Without sites a mixer may run as one operator, which rounds elsewhere.
    torch.testing.assert_close(net.forward_intermediates(x)[1][0], maps[0].permute(0, 3, 1, 2))


@torch.no_grad()
def test_samples_keep_to_themselves(net):
    x, order = torch.randn(3, 3, *SIZE), [2, 0, 1]
    torch.testing.assert_close(net(x[order]), net(x)[order])
    torch.testing.assert_close(net(x[1:2]), net(x)[1:2])
    assert not torch.equal(net.kept_patches(x)[0][0], net.kept_patches(x)[0][1])


@torch.no_grad()
def test_nothing_to_prune(net):
    x = torch.randn(1, 3, *SIZE)
    pruned = net(x)
    net.set_pruning((0, 2), 1.0)
    same = net(x)
    net.set_pruning()
    assert torch.equal(net(x), same) and not torch.allclose(pruned, same)


def test_gradients_come_from_kept_tokens(net):
    """Behind a site, a place that was pruned has none. Recomputing blocks changes nothing."""
    net.set_pruning((2,), 0.6, decay=True)
    x = torch.randn(1, 3, *SIZE, requires_grad=True)
    (kept,), seen = net.kept_patches(x), []

    def keep_gradient(module, inputs, output):
        output.retain_grad()
        seen.append(output)

    hook = net.blocks[2].register_forward_hook(keep_gradient)
    net(x).square().sum().backward()
    grad = net.tokens.split(seen[0].grad)[0].reshape(*kept.shape, -1)
    assert (grad[~kept] == 0).all() and (grad[kept] != 0).any(-1).all()
    assert all(p.grad is not None for p in net.parameters())
    hook.remove()
    wanted, x.grad = x.grad, None
    net.set_grad_checkpointing()
    net(x).square().sum().backward()
    torch.testing.assert_close(x.grad, wanted)


@pytest.mark.parametrize("name", ["vim_pico", "plainmamba_pico"])
@torch.no_grad()
def test_exported_compiled_and_traced(name):
    net = timm.create_model(name, num_classes=5, depth=2, pruning=dict(sites=(0,), keep=0.6)).eval()
    x = torch.randn(2, 3, *SIZE)
    wanted, maps = net(x), net.forward_intermediates(x, [0, 1], intermediates_only=True)
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(net, (torch.cat([x, x]),), dynamic_shapes=batch).module()
    torch.testing.assert_close(exported(x), wanted)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), wanted)
    torch.testing.assert_close(torch.jit.trace(net, x, check_trace=False)(x), wanted)
    with pytest.raises(ValueError, match="cannot be scripted"):
        torch.jit.script(net)
    assert all(map(torch.equal, FeatureGetterNet(net, out_indices=[0, 1])(x), maps))


@pytest.mark.parametrize("kind", ["paper", "macs"])
def test_counts_are_of_the_tokens_that_are_left(net, kind):
    """Of 35 patches 18 are left. PlainMamba convolves whole maps, all else shrinks with the tokens."""
    net.set_pruning((1,), 0.5)
    cost = {module.name: module.flops for module in count(net, (3, *SIZE), kind).modules}
    net.set_pruning()
    dense = {module.name: module.flops for module in count(net, (3, *SIZE), kind).modules}
    left, all_tokens = 18 + net.num_prefix_tokens, 35 + net.num_prefix_tokens
    for i, pruned in enumerate([False, False, True, True]):
        name = f"blocks.{i}"
        whole = 0
        if isinstance(net, PlainMamba):
            whole = dense[f"{name}.mixer.conv"] + dense.get(f"{name}.local", 0)
        share = left / all_tokens if pruned else 1
        assert cost[name] == pytest.approx(whole + (dense[name] - whole) * share, rel=1e-9), name


@torch.no_grad()
def test_refused():
    for family in families():
        name = f"{family.name}_pico"
        if name not in timm.list_models() or issubclass(family.models[0], PlainBackbone):
            continue
        with torch.device("meta"), pytest.raises(ValueError, match="cannot prune tokens: its downsampling"):
            timm.create_model(name).set_pruning((1,), 0.5)
    with pytest.raises(ModelError, match="pruning"):
        create_model("vmamba_pico", pruning=dict(sites=(1,), keep=0.5))
    net = timm.create_model("vim_pico")
    for sites, keep, options, words in [
        ((1, 4), 0.5, {}, "below 4"),
        ((2, 1), 0.5, {}, "increasing"),
        ((1,), 0.0, {}, "above 0"),
        ((1,), 1.5, {}, "at most 1"),
        ((1,), 0.5, dict(decay=True, as_released=True), "without decay"),
    ]:
        with pytest.raises(ValueError, match=words):
            net.set_pruning(sites, keep, **options)
        assert net.pruning is None
    for options in (dict(feature_maps="mixer"), dict(class_token=False)):
        with pytest.raises(ValueError, match="stream|class token"):
            timm.create_model("vim_pico", pruning=dict(sites=(1,), keep=0.5, as_released=True), **options)
    net.set_pruning((1,), 0.5)
    with pytest.raises(ValueError, match="needs all patches"):
        ViTAdapter(net)

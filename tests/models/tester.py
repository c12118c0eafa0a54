"""Demands on every family besides its parity vectors and `test_registry.py`.

A family's test module derives a class from `FamilyTester`, and gives it the family, the records that its official
checkpoints are made from, and what is its own: see the attributes. Everything else follows from the family and from two
files of data: `tests/data/parity/<family>.json` (official keys and shapes) and `tests/data/models/<family>.json`, which
has the parameters of every variant and, by the tag of each pretrained configuration, where its weights are: an address,
the name of a repository on the hub, or the words that say so; empty for weights that nobody published.

    class TestVMamba(FamilyTester):
        family = FAMILY
        checkpoints = {"tiny": Official("vmamba", "vmamba_tiny_s1l8")}

What holds for several families, but not for all, is in a module by theme: `test_distilled.py`, `test_precision.py`,
`test_initial_parameters.py`, `test_checkpoint_files.py`.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay

from tests import parity
from tests.small import blocks_of, few_blocks
from vssm.layers import PatchStem
from vssm.models import Family, PlainBackbone, family_of

DATA = Path(__file__).parents[1] / "data" / "models"
# The last parts of the names of all families' state-space parameters, and of other parameters that are not decayed.
SPARED = {"A", "A_log", "A_logs", "D", "Ds", "dt_bias", "dt_projs_bias", "direction_Bs", "cls_token", "pos_embed"}
# The last parts of the names of a batch norm's buffers.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

# Poolings that a head without a choice of them refuses, and what the error names.
AVERAGE_ONLY = [(dict(global_pool="max"), ("'avg'", "'max'")), (dict(global_pool=""), ("classes", "1000", "''"))]


@dataclass(frozen=True)
class Official:
    """A checkpoint in the official layout, from the keys and shapes of a record in tests/data/parity.

    Attributes:
        file: of the record.
        key: of the record.
        model: the registered model that it fits; that of the record if none is given.
        options: of that model; one block a stage if none are given, all kinds of keys at a tenth of the cost.
        rules: see `tests.parity`.
    """

    file: str
    key: str
    model: str = ""
    options: Mapping = field(default_factory=dict)
    rules: str = "v1"

    @functools.cached_property
    def _record(self) -> dict:
        return parity.load(self.file)["variants"][self.key]

    @functools.cached_property
    def name(self) -> str:
        return self.model or self._record["name"]

    @functools.cached_property
    def _options(self) -> Mapping:
        return self.options or few_blocks(self.name)

    @functools.cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        shapes = self._record["state_dict"]
        if not self.options:
            shapes = {k: v for k, v in shapes.items() if not re.search(r"(\bblocks|^block\d)\.[1-9]", k)}
        return parity.state_dict({"state_dict": shapes}, self.rules)

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self._weights)

    def create(self, **options) -> torch.nn.Module:
        return timm.create_model(self.name, **{"device": "meta", **self._options, **options})

    @functools.cached_property
    def _model(self) -> torch.nn.Module:
        return self.create()

    def convert(self, checkpoint: Mapping, **options) -> dict[str, torch.Tensor]:
        """Through the family's filter, for a model with these options."""
        model = self.create(**options) if options else self._model
        return family_of(model).module.checkpoint_filter_fn(checkpoint, model)


def assert_same(got: Mapping, want: Mapping):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)


def assert_refused(error: type[Exception], named: Sequence[str], call: Callable, *args, **kwargs):
    """The call raises this type, and the message names these values."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    for value in named:
        assert value in str(caught.value), (value, str(caught.value))


class FamilyTester:
    """Tests of a family.

    Attributes:
        family: whose models they are.
        checkpoints: official layouts by a label.
        layouts: other official layouts of a checkpoint: (label, function of the weights).
        foreign: (label, key that no model has, values named in the error), where the error says more than the key.
        refused: (variant, options, values named in the ValueError) of options that other families do not have.
    """

    family: Family
    checkpoints: Mapping[str, Official]
    layouts: Sequence[tuple[str, Callable]] = ()
    foreign: Sequence[tuple[str, ...]] = ()
    refused: Sequence[tuple[str, dict, tuple[str, ...]]] = ()

    @functools.cached_property
    def facts(self) -> dict[str, dict]:
        return json.loads((DATA / f"{self.family.name}.json").read_text())

    @property
    def picos(self) -> list[str]:
        return [name for name in self.family.variants if name.endswith("_pico")]

    def pytest_generate_tests(self, metafunc):
        if "label" in metafunc.fixturenames:
            metafunc.parametrize("label", self.checkpoints)
        if "pico" in metafunc.fixturenames:
            metafunc.parametrize("pico", self.picos)

    # ---- structure

    def test_parameters(self):
        assert list(self.facts) == list(self.family.variants)
        for name, facts in self.facts.items():
            model = timm.create_model(name, device="meta")
            assert sum(p.numel() for p in model.parameters()) == facts["parameters"], name

    def test_parameters_are_those_of_the_official_records(self):
        """As the official models counted them, and as their shapes add up where the only buffers are those of norms."""
        variants = parity.load(self.family.name)["variants"].values()
        records = {record["name"]: record for record in variants if "name" in record}
        assert records
        for name, record in records.items():
            assert record["params"] == self.facts[name]["parameters"], name
            model = timm.create_model(name, device="meta")
            buffers = model.state_dict().keys() - dict(model.named_parameters()).keys()
            if all(buffer.endswith(STATISTICS) for buffer in buffers):
                shapes = {k: shape for k, shape in record["state_dict"].items() if not k.endswith(STATISTICS)}
                assert sum(map(math.prod, shapes.values())) == self.facts[name]["parameters"], name

    def test_refused_options(self):
        refused = list(self.refused)
        model = timm.create_model(self.picos[0], device="meta")
        if not isinstance(model, PlainBackbone):
            dims = (8,) * (len(model.feature_info) + 1)
            refused.append((self.picos[0], dict(dims=dims), ("dims and depths", str(dims))))
        for name, options, named in refused:
            assert_refused(ValueError, named, timm.create_model, name, device="meta", **options)

    def smallest(self, model: torch.nn.Module) -> int:
        """The side of the smallest image: a stem that cuts patches without padding takes nothing smaller than one."""
        return 4 if isinstance(model.stem, PatchStem) else getattr(model.stem, "size", 1)

    def test_feature_maps(self, pico):
        """Images of any size: a stage rounds up what it halves, and a stem does so unless it cuts whole patches."""
        model = timm.create_model(pico, features_only=True, device="meta").eval()
        strides, smallest = model.feature_info.reduction(), self.smallest(model.model)
        for size in ((75, 101), (80, 80), (128, 48), (33, 32), (smallest, smallest)):
            want = [[math.floor(n / strides[0]) if smallest > 1 else math.ceil(n / strides[0]) for n in size]]
            for before, stride in zip(strides, strides[1:], strict=False):
                want.append([math.ceil(n * before / stride) for n in want[-1]])
            maps = model(torch.empty(1, 3, *size, device="meta"))
            assert [list(m.shape[2:]) for m in maps] == want, size

    @torch.no_grad()
    def test_small_images(self, pico):
        torch.manual_seed(0)
        model = timm.create_model(pico, num_classes=3).eval()
        smallest = self.smallest(model)
        for size in ((smallest, smallest), (smallest + 1, smallest + 27), (smallest + 13, smallest + 2)):
            assert model(torch.randn(1, 3, *size)).isfinite().all(), size

    def test_stochastic_depth_rises_over_all_blocks(self, pico):
        for rate in (0.4, 0.0):
            model = timm.create_model(pico, drop_path_rate=rate, device="meta")
            rates = [getattr(b.drop_path, "drop_prob", 0.0) for b in blocks_of(model)]
            assert rates == pytest.approx([rate * i / (len(rates) - 1) for i in range(len(rates))])

    def test_no_weight_decay(self, pico):
        model = timm.create_model(pico, device="meta")
        names = [n for n, _ in model.named_parameters()]
        assert model.no_weight_decay() == {n for n in names if n.rsplit(".", 1)[-1] in SPARED} != set()
        groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
        decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
        for n, p in model.named_parameters():
            spared = p.dim() <= 1 or n.endswith(".bias") or n in model.no_weight_decay()
            assert (id(p) in decayed) == (not spared), n

    def test_layers_of_the_optimiser(self, pico):
        """From the stem to the head; a stage's own norm counts as part of its last block."""
        model = timm.create_model(pico, device="meta")
        groups = group_parameters(model, model.group_matcher(), reverse=True)
        layers = [groups[n] for n in groups if n.startswith(("stages.", "blocks.")) and ".downsample." not in n]
        assert layers == sorted(layers)
        assert groups[model.pretrained_cfg["first_conv"] + ".weight"] == 0 and len(set(layers)) == len(blocks_of(model))
        for i, stage in enumerate(getattr(model, "stages", ())):
            last = f"stages.{i}.blocks.{len(stage.blocks) - 1}."
            norms = {groups[n] for n in groups if n.startswith(f"stages.{i}.norm.")}
            assert norms <= {groups[n] for n in groups if n.startswith(last)}

    def test_features_leave_the_head_out_and_train_the_rest(self, pico):
        model = timm.create_model(pico, features_only=True)
        heads = model.model.pretrained_cfg["classifier"]
        heads = (heads,) if isinstance(heads, str) else heads
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        assert not [n for n in names if n.removeprefix("model.").startswith(heads)]
        sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
        assert [n for n in names if model.get_parameter(n).grad is None and not n.startswith("model.norm.")] == []

    def test_started_anew(self, pico):
        """After `to_empty` every parameter and buffer gets its first value."""
        with torch.device("meta"):
            model = timm.create_model(pico)
        model.to_empty(device="cpu")
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        for tensor in tensors.values():
            tensor.data.fill_(7)
        model.init_weights()
        assert [name for name, tensor in tensors.items() if (tensor == 7).all()] == []

    @torch.no_grad()
    def test_pruned_to_features(self, pico):
        """Maps stay as they were, and the rest of the model goes on working: its pooled features, and a new head."""
        torch.manual_seed(0)
        whole, x = timm.create_model(pico).eval(), torch.randn(1, 3, 64, 96)
        for indices in ((0, 1), (0, 2), (0,)):
            pruned = timm.create_model(pico).eval()
            pruned.load_state_dict(whole.state_dict())
            want = whole.forward_intermediates(x, indices, intermediates_only=True)
            assert pruned.prune_intermediate_layers(indices) == list(indices)
            got = pruned.forward_intermediates(x, indices, intermediates_only=True)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), indices
            pruned.reset_classifier(0, "avg")
            assert pruned(x).dim() == 2 and pruned(x).isfinite().all()
            pruned.reset_classifier(3, "avg")
            assert pruned.get_classifier() and pruned.num_classes == 3
            assert pruned(x).shape == (1, 3)

    # ---- checkpoints

    def test_nested_and_prefixed(self, label):
        official = self.checkpoints[label]
        want = official.convert(official.weights())
        keys = ("model", "model_ema", "ema_model", "state_dict", "state_dict_ema", None)
        prefixes = ("", "module.", "model.", "module.model.", "module.module.", "module.module.module.")
        for key, prefix in [*((key, "module.") for key in keys), *(("model", prefix) for prefix in prefixes)]:
            weights = {prefix + k: v for k, v in official.weights().items()}
            file = {key: weights, "epoch": 3, "max_accuracy_ema": 83.3, "optimizer": {"state": {}}}
            assert_same(official.convert(weights if key is None else file), want)

    def test_averaged_weights_win(self, label):
        official = self.checkpoints[label]
        averaged = {f"module.{k}": v + 1 for k, v in official.weights().items()}
        for key in ("model_ema", "ema_model"):
            got = official.convert({"model": official.weights(), key: averaged, "optimizer": {"state": {}}})
            assert_same(got, official.convert(averaged))

    def test_everything_is_loaded(self, label):
        official = self.checkpoints[label]
        got, own = official.convert(official.weights()), official.create().state_dict()
        assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in own.items()}

    def test_layouts(self):
        for label, layout in self.layouts:
            official = self.checkpoints[label]
            other = layout(official.weights())
            assert {k: v.shape for k, v in other.items()} != {k: v.shape for k, v in official.weights().items()}
            assert_same(official.convert(other), official.convert(official.weights()))

    def test_damage_is_named(self, label):
        """A key that is missing, one that no model has, and a tensor of another shape: by the names of ours."""
        official = self.checkpoints[label]
        weights, want = official.weights(), official.convert(official.weights())
        numbered = re.compile(r"(block|layer|stage|model)s?\.?\d")
        keys = [k for k, v in weights.items() if v.is_floating_point() and numbered.search(k)]
        for key in keys[3 :: len(keys) // 5]:
            touched = official.convert({**weights, key: weights[key] + 1})
            (ours,) = [name for name, value in touched.items() if not torch.equal(value, want[name])]
            broken = {k: v for k, v in weights.items() if k != key}
            assert_refused(ValueError, ["missing", ours], official.convert, broken)
            extra = key.rsplit(".", 1)[0] + ".no_such_part"
            assert_refused(
                ValueError, ["unexpected", "no_such_part"], official.convert, {**weights, extra: weights[key]}
            )
        first = official.create().pretrained_cfg["first_conv"] + ".weight"
        key = next(k for k, v in weights.items() if v.shape == want[first].shape and torch.equal(v, want[first]))
        wide = torch.cat([weights[key]] * 2)
        named = ["wrong shape", first, "instead of"]
        assert_refused(ValueError, named, official.convert, {**weights, key: wide})
        resnet = timm.create_model("test_resnet").state_dict()
        assert_refused(ValueError, [type(official.create()).__name__, "stem.", "conv1."], official.convert, resnet)

    def test_foreign_keys_are_explained(self):
        for label, key, *named in self.foreign:
            weights = {**self.checkpoints[label].weights(), key: torch.zeros(1)}
            assert_refused(ValueError, named, self.checkpoints[label].convert, weights)

    def test_a_deeper_model_is_refused(self, label):
        official = self.checkpoints[label]
        model = official.create()
        if isinstance(model, PlainBackbone):
            deeper, named = dict(depth=len(model.blocks) + 1), ["missing", f"blocks.{len(model.blocks)}."]
        else:
            depths = [len(stage.blocks) for stage in model.stages]
            named = ["missing", f"stages.2.blocks.{depths[2]}."]
            depths[2] += 1
            deeper = dict(depths=tuple(depths))
        assert_refused(ValueError, named, official.convert, official.weights(), **deeper)

    def test_own_checkpoint_passes_through(self, pico):
        model = timm.create_model(pico)
        assert_same(self.family.module.checkpoint_filter_fn(model.state_dict(), model), model.state_dict())

    def test_pretrained_from_a_file(self, label, tmp_path):
        """The whole path, also for other classes and channels, and for features alone."""
        official = self.checkpoints[label]
        torch.save({"model_ema": official.weights(), "epoch": 299}, tmp_path / "official.pth")
        classes = official.create().num_classes
        overlay = dict(file=str(tmp_path / "official.pth"), num_classes=classes)
        load = functools.partial(official.create, device=None, pretrained=True, pretrained_cfg_overlay=overlay)
        model = load()
        assert_same(model.state_dict(), official.convert(official.weights()))
        other = load(num_classes=5, in_chans=1)
        first = model.pretrained_cfg["first_conv"] + ".weight"
        summed = model.state_dict()[first].sum(1, keepdim=True)
        assert torch.allclose(other.state_dict()[first], summed, atol=1e-6)
        heads = model.pretrained_cfg["classifier"]
        for head in (heads,) if isinstance(heads, str) else heads:
            assert other.get_submodule(head).weight.shape[0] == 5
        features = load(features_only=True).model.state_dict()
        trunk = [name for name in features if name.startswith(("stem.", "stages.", "blocks."))]
        assert trunk and all(torch.equal(features[name], model.state_dict()[name]) for name in trunk)

    def test_where_weights_are(self):
        """The first configuration is the default; weights without an address are refused, and the error says where."""
        for name, facts in self.facts.items():
            assert list(facts["weights"]) == list(self.family.module.default_cfgs[name].tags), name
            assert timm.get_pretrained_cfg(name).tag == next(iter(facts["weights"]))
            for tag, place in facts["weights"].items():
                cfg = timm.get_pretrained_cfg(f"{name}.{tag}")
                assert (cfg.url or cfg.hf_hub_id or "") == ("" if " " in place else place), (name, tag)
                if " " in place or not place:
                    assert_refused(ValueError, [name, place], timm.create_model, name, pretrained=True)

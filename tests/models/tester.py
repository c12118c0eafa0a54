"""Demands on every family besides its parity vectors and `test_registry.py`; its test module fills the tables."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

from tests import parity
from vssm.models import Family, family_of


@dataclass(frozen=True)
class Official:
    """A checkpoint in the official layout, from the keys and shapes of a record in tests/data/parity.

    Attributes:
        file: of the record.
        key: of the record.
        model: the registered model that it fits.
        options: of that model.
        first_blocks: take the first block of each stage alone, all kinds of keys at a tenth of the cost.
        rules: see `tests.parity`.
    """

    file: str
    key: str
    model: str
    options: Mapping = field(default_factory=lambda: dict(depths=(1, 1, 1, 1)))
    first_blocks: bool = True
    rules: str = "v1"

    @functools.cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        shapes = parity.load(self.file)["variants"][self.key]["state_dict"]
        if self.first_blocks:
            shapes = {k: v for k, v in shapes.items() if not re.search(r"(\bblocks|^block\d)\.[1-9]", k)}
        return parity.state_dict({"state_dict": shapes}, self.rules)

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self._weights)

    def create(self, **options) -> torch.nn.Module:
        return timm.create_model(self.model, device="meta", **{**self.options, **options})

    def convert(self, checkpoint: Mapping, **options) -> dict[str, torch.Tensor]:
        """Through the family's filter, for a model with these options."""
        model = self.create(**options)
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
        parameters: in all, by the name of every variant.
        entries: of the official state dict, by the name of a variant, where ours has as many.
        checkpoints: official layouts by a label.
        layouts: other official layouts of a checkpoint: (label, function of the weights).
        missing: (label, official key to leave out, values named in the error).
        foreign: (label, key that no model has, values named in the error).
        misfits: (label, the options of a model that a checkpoint does not fit, values named in the error).
        urls: by the tag of a pretrained configuration.
        by_hand: variants without a direct download, and what the error names.
        refused: (variant, options, values named in the ValueError).
        spared: names of parameters that `no_weight_decay` spares.
        maps: sizes of the feature maps by the size of the image.
        precise: options of the smallest variant, beside none, under which precisions agree.
    """

    family: Family
    parameters: Mapping[str, int]
    entries: Mapping[str, int] = {}
    checkpoints: Mapping[str, Official]
    layouts: Sequence[tuple[str, Callable]] = ()
    missing: Sequence[tuple[str, ...]] = ()
    foreign: Sequence[tuple[str, ...]] = ()
    misfits: Sequence[tuple[str, dict, tuple[str, ...]]] = ()
    urls: Mapping[str, str] = {}
    by_hand: Mapping[str, str] = {}
    refused: Sequence[tuple[str, dict, tuple[str, ...]]] = ()
    spared = {"A_logs", "Ds", "dt_projs_bias"}
    maps: Mapping[tuple[int, int], Sequence[tuple[int, int]]] = {}
    precise: Sequence[dict] = ()

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
        assert set(self.parameters) == set(self.family.variants)
        for name in self.parameters:
            model = timm.create_model(name, device="meta")
            assert sum(p.numel() for p in model.parameters()) == self.parameters[name], name
            assert len(model.state_dict()) == self.entries.get(name, len(model.state_dict())), name

    def test_refused_options(self):
        for name, options, named in self.refused:
            assert_refused(ValueError, named, timm.create_model, name, device="meta", **options)

    def test_feature_maps(self):
        model = timm.create_model(self.picos[0], features_only=True, device="meta").eval()
        for size, sizes in self.maps.items():
            maps = model(torch.empty(1, 3, *size, device="meta"))
            assert [tuple(m.shape[2:]) for m in maps] == list(sizes), size

    @torch.no_grad()
    def test_small_images(self, pico):
        torch.manual_seed(0)
        model = timm.create_model(pico, num_classes=3).eval()
        for size in ((4, 4), (5, 31), (17, 6)):
            assert model(torch.randn(1, 3, *size)).isfinite().all(), size

    def test_stochastic_depth_rises_over_all_blocks(self, pico):
        model = timm.create_model(pico, drop_path_rate=0.4, device="meta")
        rates = [getattr(b.drop_path, "drop_prob", 0.0) for s in model.stages for b in s.blocks]
        assert rates == pytest.approx([0.4 * i / (len(rates) - 1) for i in range(len(rates))])

    def test_no_weight_decay(self, pico):
        model = timm.create_model(pico, device="meta")
        assert {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()} == self.spared
        groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
        decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
        for n, p in model.named_parameters():
            spared = p.dim() <= 1 or n.endswith(".bias") or n.rsplit(".", 1)[-1] in self.spared
            assert (id(p) in decayed) == (not spared), n

    @torch.no_grad()
    def test_precisions_agree(self):
        """Under these options; `test_precision.py` has the models as they are."""
        for options in self.precise:
            torch.manual_seed(0)
            model = timm.create_model(self.picos[0], **options).eval()
            x = torch.randn(1, 3, 45, 61)
            y, exact = model(x), model.double()(x.double())
            half = model.bfloat16()(x.bfloat16())
            assert torch.allclose(y.double(), exact, rtol=1e-4, atol=1e-5), options
            assert torch.allclose(half.double(), exact, rtol=0.1, atol=0.05), options

    # ---- checkpoints

    def test_nested_and_prefixed(self, label):
        official = self.checkpoints[label]
        model, want = official.create(), official.convert(official.weights())
        for key in ("model", "model_ema", "ema_model", "state_dict", "state_dict_ema", None):
            for prefix in ("", "module.", "model.", "module.model.", "module.module.", "module.module.module."):
                weights = {prefix + k: v for k, v in official.weights().items()}
                file = {key: weights, "epoch": 3, "max_accuracy_ema": 83.3, "optimizer": {"state": {}}}
                assert_same(self.family.module.checkpoint_filter_fn(weights if key is None else file, model), want)

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

    def test_damage_is_named(self):
        for label, key, *named in self.missing:
            broken = self.checkpoints[label].weights()
            del broken[key]
            assert_refused(ValueError, named, self.checkpoints[label].convert, broken)
        for label, key, *named in self.foreign:
            weights = {**self.checkpoints[label].weights(), key: torch.zeros(1)}
            assert_refused(ValueError, named, self.checkpoints[label].convert, weights)
        resnet = timm.create_model("test_resnet").state_dict()
        for official in self.checkpoints.values():
            assert_refused(ValueError, [type(official.create()).__name__, "stem.", "conv1."], official.convert, resnet)

    def test_misfits_are_named(self):
        for label, options, named in self.misfits:
            official = self.checkpoints[label]
            assert_refused(ValueError, named, official.convert, official.weights(), **options)

    def test_own_checkpoint_passes_through(self, pico):
        model = timm.create_model(pico)
        assert_same(self.family.module.checkpoint_filter_fn(model.state_dict(), model), model.state_dict())

    def test_pretrained_from_a_file(self, label, tmp_path):
        """The whole path, also for other classes and channels, and for features alone."""
        official = self.checkpoints[label]
        torch.save({"model_ema": official.weights(), "epoch": 299}, tmp_path / "official.pth")
        classes = official.create().num_classes
        overlay = dict(file=str(tmp_path / "official.pth"), num_classes=classes)
        load = functools.partial(timm.create_model, official.model, pretrained=True, pretrained_cfg_overlay=overlay)
        model = load(**official.options)
        assert_same(model.state_dict(), official.convert(official.weights()))
        other = load(**{**official.options, "num_classes": 5}, in_chans=1)
        first = model.pretrained_cfg["first_conv"] + ".weight"
        summed = model.state_dict()[first].sum(1, keepdim=True)
        assert torch.allclose(other.state_dict()[first], summed, atol=1e-6)
        heads = model.pretrained_cfg["classifier"]
        for head in (heads,) if isinstance(heads, str) else heads:
            assert other.get_submodule(head).weight.shape[0] == 5
        features = load(**official.options, features_only=True).model.state_dict()
        trunk = [name for name in features if name.startswith(("stem.", "stages."))]
        assert trunk and all(torch.equal(features[name], model.state_dict()[name]) for name in trunk)

    def test_where_weights_are(self):
        for tag, url in self.urls.items():
            assert timm.get_pretrained_cfg(tag).url == url
        for name, place in {**self.by_hand, **dict.fromkeys(self.picos, "")}.items():
            assert_refused(ValueError, [name, place], timm.create_model, name, pretrained=True)

    @torch.no_grad()
    def test_hub_round_trip(self, pico, tmp_path):
        source = timm.create_model(pico, num_classes=7).eval()
        timm.models.save_for_hf(source, tmp_path, model_config=dict(num_classes=7))
        back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        x = torch.randn(1, 3, 64, 64)
        assert torch.equal(source(x), back(x))

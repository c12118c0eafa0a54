"""Comparison of every family with the vectors of its official models in tests/data/parity."""

import functools
from collections.abc import Mapping

import timm
import torch

from tests import parity
from vssm.models import Family, PlainBackbone, quarter_indices

_drawn: dict[tuple, torch.Tensor] = {}  # of the last record


# Drawing them takes longer than most tests. tests/conftest.py sorts a family's tests by the record; records of a family
# share many weights.
@functools.lru_cache(maxsize=1)
def exact_weights(file: str, key: str, rules: str) -> dict[str, torch.Tensor]:
    names = {(name, *shape, rules): name for name, shape in parity.load(file)["variants"][key]["state_dict"].items()}
    drawn = {k: _drawn[k] if k in _drawn else parity.weight(name, list(k[1:-1]), rules) for k, name in names.items()}
    _drawn.clear()
    _drawn.update(drawn)
    return {names[k]: value for k, value in drawn.items()}


def official_weights(file: str, key: str, rules: str, dtype: torch.dtype, damped: bool) -> dict[str, torch.Tensor]:
    rule = parity.load(file)["variants"][key]["damped"]["rule"] if damped else None
    return parity.cast(exact_weights(file, key, rules), dtype, rule)


class ParityTester:
    """Tests of a family against its records; a test module's class names the family, the files and the tolerances.

    Attributes:
        family: whose models they are.
        files: of records, without their suffix.
        models: the model and its options by the key of a record that has no name.
        rules: of the weights, see `tests.parity`.
        output: relative tolerance of outputs and feature maps in float32.
        gradient: that of gradients; None where float32 cannot know them, and the records have float64.
        unit: that of outputs of small nets, whose keys begin with _unit; None: as of others.
        float64: tolerance of outputs and gradients in float64, for records with cases in it.
        normed_last: whether the last map is recorded behind the last norm.
        stacked: whether the checkpoint filter joins several official parameters into one.
        elsewhere: keys of records that other tests compare.
        relu_sides: whether float32 takes float64's side where an input of a ReLU is too near to zero to have a sign.
    """

    family: Family
    files: tuple[str, ...]
    models: Mapping[str, tuple[str, dict]] = {}
    rules = "v1"
    output: float
    unit: float | None = None
    gradient: float | None = None
    float64: float = 1e-6
    normed_last = False
    stacked = False
    elsewhere: tuple[str, ...] = ()
    relu_sides = False

    def records(self) -> dict[str, tuple[str, dict]]:
        """(file, record) by the record's key."""
        records = {key: (file, r) for file in self.files for key, r in parity.load(file)["variants"].items()}
        return {key: found for key, found in records.items() if key not in self.elsewhere}

    def pytest_generate_tests(self, metafunc):
        records = self.records()
        if "where" not in metafunc.fixturenames:
            if "key" in metafunc.fixturenames:
                metafunc.parametrize("key", records)
            return
        cases = []
        for key, (_, record) in records.items():
            for where in [
                ("cases",),
                ("backbone_cases",),
                ("damped", "cases"),
                ("fp64", "cases"),
                ("fp64", "damped", "cases"),
            ]:
                found = functools.reduce(lambda part, name: part.get(name, {}), where, record)
                cases += [(key, (*where, i)) for i in range(len(found))]
        if metafunc.function.__name__ == "test_gradients":
            cases = [c for c in cases if "grad_l2" in self.case(*c)]
            cases = [c for c in cases if c[1][0] == "fp64" or self.gradient is not None]
        ids = ["-".join([key, *where[:-1], "x".join(map(str, self.case(key, where)["shape"]))]) for key, where in cases]
        metafunc.parametrize(("key", "where"), cases, ids=ids)

    def case(self, key: str, where: tuple) -> dict:
        return functools.reduce(lambda part, name: part[name], where, self.records()[key][1])

    def create(self, key: str) -> torch.nn.Module:
        """The model of a record, without weights."""
        name, options = self.models.get(key) or (self.records()[key][1]["name"], {})
        return timm.create_model(name, device="meta", **options).eval()

    def convert(self, weights: dict, model: torch.nn.Module) -> dict:
        return self.family.module.checkpoint_filter_fn(weights, model)

    def build(self, key: str, where: tuple, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """The model of a record with the official weights, in the precision of the case unless another is given."""
        dtype = dtype or (torch.float64 if where[0] == "fp64" else torch.float32)
        model = self.create(key)
        weights = official_weights(self.records()[key][0], key, self.rules, dtype, "damped" in where)
        # Not the tensors that are kept: a model may be changed.
        model.load_state_dict(self.convert({k: v.clone() for k, v in weights.items()}, model), assign=True)
        return model

    def tolerances(self, where: tuple, key: str) -> tuple[float, float]:
        """Of outputs and of gradients."""
        if where[0] == "fp64":
            return self.float64, self.float64
        return (self.unit if key.startswith("_unit") and self.unit else self.output), self.gradient

    def test_every_record_is_of_the_family(self):
        for key in self.records():
            assert isinstance(self.create(key), self.family.models)
        assert self.models.keys() == {key for key, (_, record) in self.records().items() if "name" not in record}

    def test_parameters(self, key):
        assert sum(p.numel() for p in self.create(key).parameters()) == self.records()[key][1]["params"]

    def test_forward(self, key, where):
        model = self.build(key, where)
        indices = quarter_indices(len(model.blocks)) if isinstance(model, PlainBackbone) else None
        tolerance = self.tolerances(where, key)[0]
        parity.check_forward(model, self.case(key, where), tolerance, indices, self.normed_last)

    def test_gradients(self, key, where):
        case, model = self.case(key, where), self.build(key, where)
        if self.stacked:
            parity.check_backward(model, case, *self.tolerances(where, key))
            got = parity.gradient_norms(self.records()[key][1], self.convert, model)
            parity.check_norms(got, case, self.tolerances(where, key)[1])
            return
        names = parity.gradient_names(self.records()[key][1], self.convert, model)
        assert {names[official] for official in case["grad_l2"]} == dict(model.named_parameters()).keys()
        if self.relu_sides and where[0] != "fp64":
            exact = self.build(key, where, torch.float64)
            parity.keep_branches(model, parity.relu_branches(exact, parity.image(case).double()))
        parity.check_gradients(model, names, case, *self.tolerances(where, key))

"""Reference vectors of the official models: weights that follow from their official keys, and checks.

- weight: RandomState(crc32(key)).standard_normal(shape), scaled by the kind of tensor (rules "v1"; "v2" doubles the
  matrices and takes tensors of one row for vectors);
- input: RandomState(seed).standard_normal(shape);
- gradients: of sum(output * W), W = RandomState(7).standard_normal(output shape).
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / "data" / "parity"

# The largest deviations that `check_summary` has seen so far: {model: {"outputs" or "gradients": {dtype: deviation}}}.
# `pytest --record-parity FILE` writes them (tests/conftest.py), and the model zoo's page shows them.
deviations: dict[str, dict[str, dict[str, float]]] = {}
_measured: str | None = None


@functools.cache
def names() -> dict[str, str]:
    """Key of a record -> the model that it is of; records of small nets and of other modes of a model have none."""
    records = [json.loads(path.read_text()).get("variants", {}) for path in sorted(DATA.glob("*.json"))]
    return {key: record["name"] for variants in records for key, record in variants.items() if "name" in record}


def measure(key: str | None) -> None:
    """Let what `check_summary` sees from now on count for the model of a record; for none, if there is none."""
    global _measured
    _measured = names().get(key)


def merge(into: dict, other: dict) -> None:
    """Keep the larger one of every deviation."""
    for model, kinds in other.items():
        for kind, by_dtype in kinds.items():
            mine = into.setdefault(model, {}).setdefault(kind, {})
            for dtype, value in by_dtype.items():
                mine[dtype] = max(value, mine.get(dtype, 0.0))


@functools.cache
def load(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


def cases(records: dict, with_grad: bool | None = None):
    """Parameters (record's key, number of its case) for pytest: the cases with gradients, those without, or all."""
    for key, record in records.items():
        for i, case in enumerate(record["cases"]):
            if with_grad is None or ("grad_l2" in case) == with_grad:
                yield pytest.param(key, i, id=f"{key}-{'x'.join(map(str, case['shape']))}")


def weight(key: str, shape: list[int], rules: str = "v1") -> torch.Tensor:
    """The value that the rules give an official parameter, in float64 (integers apart)."""
    v = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    matrix = len(shape) >= 2 and (rules == "v1" or shape[0] > 1)
    vector = rules == "v2" or len(shape) == 1
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        v = 1 + 0.1 * np.abs(v)
    elif matrix:
        v = (2 if rules == "v2" else 1) * v / np.sqrt(np.prod(shape[1:]))
    elif vector and key.endswith("weight"):
        v = 1 + 0.1 * v
    else:
        v = 0.1 * v
    return torch.from_numpy(np.asarray(v))


def state_dict(
    record: dict, rules: str = "v1", dtype: torch.dtype = torch.float32, damped: dict | None = None
) -> dict[str, torch.Tensor]:
    """An official state dict; `damped` is the rule (key_suffixes, factor) of a record's damped cases."""
    return cast({key: weight(key, shape, rules) for key, shape in record["state_dict"].items()}, dtype, damped)


def cast(weights: dict[str, torch.Tensor], dtype: torch.dtype, damped: dict | None = None) -> dict[str, torch.Tensor]:
    """Weights of the rules in this precision, and damped if asked for."""
    weights = {key: v.to(dtype) if v.is_floating_point() else v for key, v in weights.items()}
    if damped is not None:
        suffixes = tuple(damped["key_suffixes"])
        weights = {key: v * damped["factor"] if key.endswith(suffixes) else v for key, v in weights.items()}
    return weights


def image(case: dict) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(case["seed"]).standard_normal(case["shape"]).astype(np.float32))


def loss(output: torch.Tensor) -> torch.Tensor:
    w = np.random.RandomState(7).standard_normal(tuple(output.shape)).astype(np.float32)
    return (output * torch.from_numpy(w).to(output.dtype)).sum()


def check_summary(x: torch.Tensor, summary: dict, tolerance: float, what: str, kind: str = "outputs") -> None:
    """A tensor against its recorded mean, standard deviation, norm and 16 probes, relative to its own scale."""
    flat = x.detach().double().flatten()
    scale = summary["std"]
    probe = flat[torch.linspace(0, flat.numel() - 1, 16).long()]
    expected = torch.tensor(summary["probe"], dtype=torch.float64)
    found = {
        "probes (relative l2)": (probe - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt(),
        "l2": abs(flat.norm() / summary["l2"] - 1),
        "std": abs(flat.std(correction=0) / summary["std"] - 1),
        "mean": abs(flat.mean() - summary["mean"]) / (scale + abs(summary["mean"])),
    }
    if _measured is not None:
        merge(deviations, {_measured: {kind: {str(x.dtype).removeprefix("torch."): max(found.values()).item()}}})
    for name, deviation in found.items():
        assert deviation < tolerance, f"{what}: {name} differ by {deviation:.2e}"
    assert (probe - expected).abs().max() < 5 * tolerance * max(scale, expected.abs().max().item()), (
        f"{what}: a probe differs"
    )


def gradient_names(record: dict, filter_fn, model) -> dict[str, str]:
    """Official key -> our parameter, found by passing marked tensors through the checkpoint filter."""
    keys = list(record["state_dict"])
    marked = {key: torch.full(record["state_dict"][key], float(i)) for i, key in enumerate(keys)}
    return {keys[int(v.flatten()[0])]: name for name, v in filter_fn(marked, model).items()}


def dtype_of(model: torch.nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


@torch.no_grad()
def check_forward(model: torch.nn.Module, case: dict, tolerance: float, indices=None, normed_last=False) -> None:
    """Output (where the case has one) and feature maps of a model that holds the official weights.

    Args:
        model: in evaluation mode.
        case: of a record.
        tolerance: see `check_summary`.
        indices: of the blocks whose maps are recorded; None: all.
        normed_last: whether the last map is recorded behind the last norm, that of the features.
    """
    features, maps = model.forward_intermediates(image(case).to(dtype_of(model)), indices)
    if normed_last:
        maps[-1] = features.permute(0, 3, 1, 2)
    if "output" in case:
        output = model.forward_head(features)
        assert list(output.shape) == case["output_shape"]
        check_summary(output, case["output"], tolerance, "output")
    summaries = case.get("features") or [None] * len(maps)  # a few cases record only the output
    for i, (summary, got) in enumerate(zip(summaries, maps, strict=True)):
        if summary is not None:
            check_summary(got, summary, tolerance, f"feature {i}")


def gradient_norms(record: dict, filter_fn, model) -> dict[str, float]:
    """Norm of the gradient of every official parameter, also where the checkpoint filter stacks several into one."""
    marked = {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(record["state_dict"].items())}
    parameters, squares = dict(model.named_parameters()), torch.zeros(len(marked), dtype=torch.float64)
    for name, marks in filter_fn(marked, model).items():
        if name in parameters:
            values = parameters[name].grad.double().square().flatten()
            squares += torch.bincount(marks.flatten().long(), weights=values, minlength=len(marked))
    return dict(zip(marked, squares.sqrt().tolist(), strict=True))


def check_norms(got: dict[str, float], case: dict, tolerance: float, floor: float = 1e-7) -> None:
    """Norms of the gradients of the official parameters; `floor` is the absolute difference that counts as rounding."""
    for official, expected in case["grad_l2"].items():
        difference = abs(got[official] - expected)
        assert difference <= tolerance * abs(expected) + floor, f"{official}: {got[official]} instead of {expected}"


def check_backward(model: torch.nn.Module, case: dict, output_tolerance: float, tolerance: float) -> None:
    """Output and input gradient; leaves the gradients of the parameters behind."""
    x = image(case).to(dtype_of(model)).requires_grad_()
    output = model(x)
    check_summary(output, case["output"], output_tolerance, "output")
    loss(output).backward()
    check_summary(x.grad, case["grad_input"], tolerance, "input gradient", kind="gradients")


def check_gradients(
    model: torch.nn.Module,
    names: dict[str, str],
    case: dict,
    output_tolerance: float,
    tolerance: float,
    floor: float = 1e-7,
) -> None:
    """Output, input gradient and the norm of every parameter's gradient; `names` from `gradient_names`."""
    check_backward(model, case, output_tolerance, tolerance)
    parameters = dict(model.named_parameters())
    norms = {key: parameters[names[key]].grad.double().norm().item() for key in case["grad_l2"]}
    check_norms(norms, case, tolerance, floor)


def relu_branches(model: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Where the input of each ReLU is positive; for `keep_branches`."""
    branches = {}
    hooks = [
        relu.register_forward_pre_hook(lambda _, args, name=name: branches.update({name: args[0] > 0}))
        for name, relu in model.named_modules()
        if isinstance(relu, torch.nn.ReLU)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return branches


def keep_branches(model: torch.nn.Module, branches: dict[str, torch.Tensor]) -> None:
    """Push the few inputs of a ReLU that rounding put on the other side of zero back over it, by about 1e-5.

    An input that near to zero has, in float32, the sign that the processor, the library and the number of threads give
    it, and each changes the gradients before it by up to 1e-3. `branches` come from the same model in float64.
    """

    def push(positive: torch.Tensor):
        def hook(_, args):
            (x,) = args
            wrong = (x > 0) != positive
            assert x[wrong].abs().lt(1e-5 * x.std()).all()
            return x + torch.where(wrong, positive * 1e-6 * x.std() - x, 0.0).detach()

        return hook

    for name, positive in branches.items():
        model.get_submodule(name).register_forward_pre_hook(push(positive))

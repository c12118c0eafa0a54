"""Reference vectors of the official models, rules "v1": weights that follow from their official keys, and checks.

- weight: RandomState(crc32(key)).standard_normal(shape), scaled by the kind of tensor;
- input: RandomState(seed).standard_normal(shape);
- gradients: of sum(output * W), W = RandomState(7).standard_normal(output shape).
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data" / "parity"


def load(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


def weight(key: str, shape: list[int]) -> torch.Tensor:
    """The value that the rules give an official parameter."""
    v = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        v = 1 + 0.1 * np.abs(v)
    elif len(shape) >= 2:
        v = v / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 1 and key.endswith("weight"):
        v = 1 + 0.1 * v
    else:
        v = 0.1 * v
    return torch.from_numpy(np.asarray(v, dtype=np.float32))


def state_dict(record: dict) -> dict[str, torch.Tensor]:
    return {key: weight(key, shape) for key, shape in record["state_dict"].items()}


def image(case: dict) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(case["seed"]).standard_normal(case["shape"]).astype(np.float32))


def loss(output: torch.Tensor) -> torch.Tensor:
    w = np.random.RandomState(7).standard_normal(tuple(output.shape)).astype(np.float32)
    return (output * torch.from_numpy(w).to(output.dtype)).sum()


def check_summary(x: torch.Tensor, summary: dict, tolerance: float, what: str) -> None:
    """A tensor against its recorded mean, standard deviation, norm and 16 probes, relative to its own scale."""
    flat = x.detach().double().flatten()
    scale = summary["std"]
    probe = flat[torch.linspace(0, flat.numel() - 1, 16).long()]
    expected = torch.tensor(summary["probe"], dtype=torch.float64)
    error = (probe - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    assert error < tolerance, f"{what}: probes differ by {error:.2e} (relative l2)"
    assert (probe - expected).abs().max() < 5 * tolerance * max(scale, expected.abs().max().item()), (
        f"{what}: a probe differs"
    )
    assert abs(flat.norm() / summary["l2"] - 1) < tolerance, f"{what}: l2"
    assert abs(flat.std(correction=0) / summary["std"] - 1) < tolerance, f"{what}: std"
    assert abs(flat.mean() - summary["mean"]) < tolerance * (scale + abs(summary["mean"])), f"{what}: mean"


def gradient_names(record: dict, filter_fn, model) -> dict[str, str]:
    """Official key -> our parameter, found by passing marked tensors through the checkpoint filter."""
    marked = {key: torch.empty(shape) for key, shape in record["state_dict"].items()}
    by_storage = {value.untyped_storage().data_ptr(): key for key, value in marked.items()}
    return {by_storage[v.untyped_storage().data_ptr()]: name for name, v in filter_fn(marked, model).items()}

"""What every network of the zoo costs, counted on the meta device, once in a process."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from .. import medical
from .. import published as data
from .._errors import UserError
from ..profiling import paper_flops
from ..profiling.subjects import count_subject, find_subjects

__all__ = ["Cost", "classifier_cost", "dense_cost", "disagreement", "like", "network_cost", "network_of", "recipes"]

# The configs of small sets made here, and of networks of volumes of ours: nothing was published for them.
_OWN = ("_digits", "_mni152", "_volumes")
# The data sets of most configs.
_USUAL = ("coco", "ade20k")


def like(value: float, printed: str) -> str:
    """A figure with as many decimals as a printed one."""
    return f"{value:.{len(printed.partition('.')[2])}f}"


def disagreement(name: str, what: str, counted: float, printed: str, reason: str) -> str:
    """Say why our figure is not the printed one; nothing where it is, to the last printed digit.

    Args:
        name: The entry in the data files, for the message.
        what: "Parameters" or "FLOPs".
        counted: Our figure.
        printed: The authors'.
        reason: Why they differ.

    Returns:
        The reason.

    Raises:
        UserError: They differ and nobody says why, or they agree in spite of a reason.
    """
    agree = like(counted, printed) == printed
    if agree == bool(reason):
        then = "agree, so there must be no reason" if agree else "differ, so it must say why"
        raise UserError(f"vssm/published: '{name}' has {printed} as {what} and counts {counted:.4f}; they {then}.")
    return reason


@dataclass(frozen=True)
class Cost:
    """Of a network.

    Attributes:
        params: Millions of parameters.
        gflops: As the papers count them.
    """

    params: float
    gflops: float


def _cost(model: nn.Module, input_size: Sequence[int]) -> Cost:
    """Count a model on the meta device."""
    gflops = paper_flops(model.to_empty(device="cpu"), input_size) / 1e9  # nobody looks at the values
    return Cost(_millions(model), gflops)


def _millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@functools.cache
def classifier_cost(name: str) -> Cost:
    """Count a classifier of timm's registry at its usual size, once in a process."""
    return _cost(timm.create_model(name, device="meta"), get_pretrained_cfg(name).input_size)


@functools.cache
def network_cost(name: str) -> Cost:
    """Count a network of `vssm.medical` at the size that its authors take, once in a process."""
    with torch.device("meta"):
        model = getattr(medical, name)()
    return _cost(model, data.NETWORKS[name].input_size)


def dense_cost(path: Path) -> Cost:
    """Count a detector or segmentor, once in a process for all its schedules, at the size its printed cost is for."""
    known = _run(path)
    return _dense_cost(path.parent, network_of(path), known.input_size[1:] if known else ())


def _run(path: Path) -> data.PublishedRun | None:
    return data.RUNS.get(f"configs/{path.parent.name}/{path.name}")


def network_of(path: Path) -> str:
    """Head and backbone of a config, without the schedule, which costs nothing.

    The data set belongs to it where it is a rarer one and a cost was printed for it; else the classes of the usual one
    are counted.
    """
    head, backbone, *_, data_set = path.stem.split("_")
    data_set, known = re.sub(r"-\d+x\d+$", "", data_set), _run(path)
    alone = data_set not in _USUAL and known and known.gflops
    return f"{head}_{backbone} on {data_set}" if alone else f"{head}_{backbone}"


@functools.cache
def _dense_cost(folder: Path, network: str, size: tuple[int, ...]) -> Cost:
    path = min(path for path in recipes(folder) if network_of(path) == network)
    subject, cost = count_subject(find_subjects([str(path)])[str(path)], size or None)
    return Cost(_millions(subject.model), cost.flops / 1e9)


def recipes(folder: Path) -> list[Path]:
    """List the configs of a folder that repeat a published run, by name."""
    return sorted(path for path in folder.glob("*.py") if not any(own in path.stem for own in _OWN))

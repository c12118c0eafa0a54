"""Learn steps and smoothing together, block by block (JLSS of PTQ4VM, arXiv 2412.20386, section 4.3)."""

import re
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import QuantizeError, QuantLinear

__all__ = ["learn_blocks", "quantised_blocks"]

_BLOCK = re.compile(r"(^|\.)blocks\.\d+$")


class _Reached(Exception):
    pass


def quantised_blocks(model: nn.Module) -> list[str]:
    """Return the names of the blocks that hold quantised layers, in the order of the model."""
    names = [name for name, _ in model.named_modules() if _BLOCK.search(name)]
    return [name for name in names if any(isinstance(m, QuantLinear) for m in model.get_submodule(name).modules())]


def learn_blocks(
    original: nn.Module,
    quantized: nn.Module,
    batches: Sequence[Tensor],
    epochs: int = 50,
    step_lr: float = 5e-4,
    smoothing_lr: float = 1e-4,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Let the quantised blocks of a model agree better with the float ones.

    A block reads what the quantised ones before it give, and learns to give what the float block gives in the float
    model. The loss is 1 - cosine over all values of an image; rounding is passed straight through. A block keeps
    what it had after its best epoch.

    Args:
        original: The float model.
        quantized: The same model with quantising layers that are not frozen; changed in place.
        batches: Calibration images.
        epochs: Passes over them for each block.
        step_lr: Learning rate of the steps.
        smoothing_lr: That of the smoothing: 1e-4 for VMamba, 1e-2 for Vim in the paper's code.
        progress: Called with (block, blocks done, blocks in all).

    Returns:
        The loss before and after, by block.

    Raises:
        QuantizeError: The model has no block with quantised layers.
    """
    names = quantised_blocks(quantized)
    if not names:
        raise QuantizeError(f"{type(quantized).__name__} has no blocks that could learn their steps.")
    losses = {}
    for i, name in enumerate(names):
        if progress:
            progress(name, i, len(names))
        block = quantized.get_submodule(name)
        inputs = [_call_of(quantized, name, images) for images in batches]
        targets = [_result_of(original, name, images) for images in batches]
        losses[name] = _learn(block, inputs, targets, epochs, step_lr, smoothing_lr)
    return losses


@torch.no_grad()
def _call_of(model: nn.Module, name: str, images: Tensor) -> tuple[tuple, dict]:
    found: list[tuple[tuple, dict]] = []

    def keep(module, args, kwargs):
        found.append((args, kwargs))
        raise _Reached

    hook = model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(images)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


@torch.no_grad()
def _result_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    args, kwargs = _call_of(model, name, images)
    return _first(model.get_submodule(name)(*args, **kwargs))


def _first(output: Tensor | Sequence[Tensor]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _distance(block: nn.Module, call: tuple[tuple, dict], target: Tensor) -> Tensor:
    output = _first(block(*call[0], **call[1]))
    return 1 - F.cosine_similarity(output.flatten(1), target.flatten(1)).mean()


@torch.no_grad()
def _mean_distance(block: nn.Module, inputs: Sequence, targets: Sequence[Tensor]) -> float:
    return sum(float(_distance(block, *pair)) for pair in zip(inputs, targets, strict=True)) / len(inputs)


def _learnable(block: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in block.named_parameters():
        last = name.rpartition(".")[2]
        if last == "smoothing" or last == "step" or last.startswith("step_"):
            yield last, parameter


@torch.no_grad()
def _keep_positive(parameters: Sequence[Tensor], starts: Sequence[Tensor]) -> None:
    # A small step would be through 0 after one update, since Adam's updates are as large as the learning rate.
    for parameter, start in zip(parameters, starts, strict=True):
        parameter.copy_(torch.maximum(torch.minimum(parameter, start * 4), start / 4))


def _learn(
    block: nn.Module, inputs: Sequence, targets: Sequence[Tensor], epochs: int, step_lr: float, smoothing_lr: float
) -> tuple[float, float]:
    learnable = list(_learnable(block))
    smoothing = [p for last, p in learnable if last == "smoothing"]
    steps = [p for last, p in learnable if last != "smoothing"]
    learned = smoothing + steps
    starts = [p.detach().clone() for p in learned]
    before = best = _mean_distance(block, inputs, targets)
    kept = starts
    groups = [{"params": smoothing, "lr": smoothing_lr}, {"params": steps, "lr": step_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-5)
    with torch.enable_grad():
        for parameter in learned:
            parameter.requires_grad_(True)
        for _ in range(epochs):
            for call, target in zip(inputs, targets, strict=True):
                loss = _distance(block, call, target)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(learned, 2.0)
                optimizer.step()
                _keep_positive(learned, starts)
            reached = _mean_distance(block, inputs, targets)
            if reached < best:
                best, kept = reached, [p.detach().clone() for p in learned]
        for parameter in learned:
            parameter.requires_grad_(False)
    with torch.no_grad():
        for parameter, value in zip(learned, kept, strict=True):
            parameter.copy_(value)
    return before, best

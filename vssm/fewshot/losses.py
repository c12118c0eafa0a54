"""What keeps the classes of the start and the later ones apart (Mamba-FSCIL, arXiv 2407.06136, section 3.4).

Letters: B batch, L tokens, C channels.
"""

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor

from .projector import Projection, Selection

__all__ = ["class_sensitive_losses", "mix_features", "separation_losses", "suppression_losses"]


def suppression_losses(gate: Tensor, base: Tensor, weight_base: float, weight_new: float) -> dict[str, Tensor]:
    """Keep the new branch small for base classes, and, by a reward, large for new ones.

    Args:
        gate: Of the branch that learns, (B, L, C).
        base: Which samples are of base classes, (B,), bool.
        weight_base: Factor of the norm of the base samples' gates over their number of elements.
        weight_new: Factor of the reward.

    Returns:
        `loss_suppression_base` and `loss_suppression_new`, zero where there are no such samples.
    """
    losses = {}
    for name, weight, chosen in (("base", weight_base, base), ("new", -weight_new, ~base)):
        part = gate[chosen]
        # The norm of nothing has no gradient, and NaN is its mean.
        norm = part.norm() / part.numel() if part.numel() else gate.sum() * 0
        losses[f"loss_suppression_{name}"] = weight * norm
    return losses


def separation_losses(selection: Selection, base: Tensor, weight: float) -> dict[str, Tensor]:
    """Have base and new classes choose different state spaces: half the size of the cosine of their mean choices.

    Args:
        selection: Of one branch.
        base: Which samples are of base classes, (B,), bool; both kinds have to be there.
        weight: Factor.

    Returns:
        One loss for dt, B and C each.
    """
    losses = {}
    for name, part in zip(selection._fields, selection, strict=True):
        ours, others = part[base].mean((0, 1, 2)), part[~base].mean((0, 1, 2))
        losses[f"loss_separation_{name}"] = weight * F.cosine_similarity(ours, others, dim=0).abs() / 2
    return losses


def class_sensitive_losses(
    projection: Projection,
    labels: Tensor,
    base_classes: int,
    suppress_base: float = 0.0,
    suppress_new: float = 0.0,
    separate_base: float = 0.0,
    separate_new: float = 0.0,
) -> dict[str, Tensor]:
    """Give the losses that know which classes are new; those of weight 0 are left out.

    Args:
        projection: Of a batch.
        labels: Class numbers (B,).
        base_classes: A class below is a base class.
        suppress_base: See `suppression_losses`.
        suppress_new: See `suppression_losses`.
        separate_base: Factor of the separation in the first branch.
        separate_new: Factor of the separation in the second branch.

    Returns:
        Scalars by name. Separation is left out where some process has not both kinds of classes.
    """
    base = labels < base_classes
    losses = {}
    if suppress_base or suppress_new:
        losses |= suppression_losses(projection.gate, base, suppress_base, suppress_new)
    both = torch.stack([base.any(), (~base).any()]).all().to(torch.int32)
    all_reduce(both, op="min")
    parts = {"base": (projection.selection, separate_base), "new": (projection.new_selection, separate_new)}
    for branch, (selection, weight) in parts.items():
        if weight and selection is not None and both:
            found = separation_losses(selection, base, weight)
            losses |= {f"{name}_{branch}": value for name, value in found.items()}
    return losses


def mix_features(x: Tensor, order: Tensor, share: float = 0.5) -> Tensor:
    """Mix vectors (B, C) with those of another order (B,): share x + (1 - share) x[order].

    The loss of the result is the mean of the losses with the labels of both, weighted alike.
    """
    return share * x + (1 - share) * x[order]

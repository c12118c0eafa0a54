"""The later sessions: a few images of each new class beside the mean maps of all others, on cached features.

Letters: M images, Ci channels of the backbone's map, C of the projector's vectors, S side that the projector is for.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from .._errors import UserError
from .._progress import Progress, quietly
from .classifier import IncrementalNet
from .data import Split, draw_shots
from .etf import dot_regression_loss
from .losses import class_sensitive_losses, mix_features

__all__ = ["BaseSession", "Outcome", "Recipe", "Score", "look_at", "run_sessions", "score"]

PerSession = float | Sequence[float]


@dataclass(frozen=True)
class Recipe:
    """How the later sessions are learnt. What is `PerSession` may be a list; its last value then goes on.

    Attributes:
        lr: Learning rate of SGD: five steps of warm-up, a cosine to a hundredth, five steps there.
        momentum: Of SGD.
        weight_decay: Of SGD.
        steps: Steps of each session, `PerSession`.
        batch_size: Vectors in a step.
        layers: Point-wise layers of the second branch.
        first_branch_lr: Rate of the first branch as a multiple of `lr`; 0: it stays.
        base_copies: How often the mean map of a base class is among the training data, `PerSession`.
        old_copies: How often that of a class of an earlier session is.
        balanced: Make the aims of rare classes longer, see `dot_regression_loss`.
        loss_weight: Factor of that loss.
        mix_probability: How often a step mixes pairs of vectors, half and half.
        suppress_base: See `class_sensitive_losses`; so are the next three.
        suppress_new: See there.
        separate_base: See there.
        separate_new: See there.

    Raises:
        UserError: A number is out of range.
    """

    lr: float = 0.25
    momentum: float = 0.9
    weight_decay: float = 5e-4
    steps: PerSession = 200
    batch_size: int = 64
    layers: int = 2
    first_branch_lr: float = 0.0
    base_copies: PerSession = 1
    old_copies: int = 1
    balanced: bool = True
    loss_weight: float = 10.0
    mix_probability: float = 0.5
    suppress_base: float = 0.0
    suppress_new: float = 0.0
    separate_base: float = 0.0
    separate_new: float = 0.0

    def __post_init__(self):
        for name, least in (("steps", 1), ("base_copies", 1), ("old_copies", 1), ("batch_size", 1)):
            value = getattr(self, name)
            values = value if isinstance(value, Sequence) else [value]
            if not values or min(values) < least:
                raise UserError(f"incremental.{name} is {least} or more, not {value}.")
        if not 0 <= self.mix_probability <= 1:
            raise UserError(f"incremental.mix_probability is from 0 to 1, not {self.mix_probability}.")
        if not self.lr > 0:
            raise UserError(f"incremental.lr is positive, not {self.lr}.")

    def at(self, name: str, session: int) -> int:
        """Return what is `PerSession` for a session, 1 or more."""
        value = getattr(self, name)
        return int(value[min(session, len(value)) - 1] if isinstance(value, Sequence) else value)


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy after a session, per cent.

    Attributes:
        session: 0 for the base session.
        classes: Known after it.
        all: Over the test images of all of these.
        base: Of the base classes among them.
        old: Of those of earlier sessions; None where there are none.
        new: Of those of this session; None in the base session.
    """

    session: int
    classes: int
    all: float
    base: float
    old: float | None = None
    new: float | None = None


@dataclass
class Outcome:
    """What one seed gave.

    Attributes:
        seed: Of the shots that are drawn, and of training.
        scores: By method, after each session.
        net: With the second branch, after the last session.
    """

    seed: int
    scores: dict[str, list[Score]] = field(default_factory=dict)
    net: IncrementalNet | None = None

    def as_dict(self) -> dict:
        """Return the scores as plain values."""
        return {"seed": self.seed, **{name: [asdict(one) for one in scores] for name, scores in self.scores.items()}}


@dataclass(frozen=True)
class BaseSession:
    """What is kept of the base session.

    Attributes:
        means: The mean map of every base class, (K, Ci, S, S).
        vector_means: The mean of every base class's vectors of length one, (K, C), from the first branch.
        maps: Of the test images of all classes, (M, Ci, S, S).
        labels: Of the test images, (M,).
    """

    means: Tensor
    vector_means: Tensor
    maps: Tensor
    labels: Tensor


@torch.no_grad()
def _maps(net: IncrementalNet, dataset: Dataset, workers: int, progress: Progress, title: str) -> Iterator[tuple]:
    device = net.head.etf_vec.device
    loader = DataLoader(dataset, 64, num_workers=workers)
    for batch in progress(loader, title):
        maps = F.adaptive_avg_pool2d(net.backbone(batch["inputs"].to(device))[-1], net.projector.size)
        yield maps, batch["labels"].to(device)


def look_at(
    net: IncrementalNet, train: Dataset, test: Dataset, workers: int = 0, progress: Progress = quietly
) -> BaseSession:
    """Run the backbone once over the base classes' training images, and once over all test images.

    Args:
        net: After the base session.
        train: Images of the base classes.
        test: Images of all classes.
        workers: Processes that read images.
        progress: Shows how far it is.

    Raises:
        UserError: A base class has no training image, or there are no test images.
    """
    net.eval()
    count, channels, size = net.classes, net.projector.options["in_channels"], net.projector.size
    vectors, classes = net.head.etf_vec.shape
    means = net.head.etf_vec.new_zeros(count, channels, size, size)
    vector_means, images = means.new_zeros(count, vectors), means.new_zeros(count)
    for maps, labels in _maps(net, train, workers, progress, "training images"):
        means.index_add_(0, labels, maps)
        vector_means.index_add_(0, labels, F.normalize(net.projector(maps).features, dim=1))
        images += torch.bincount(labels, minlength=count)
    if not images.all():
        raise UserError(f"The base class {int((images == 0).nonzero()[0])} has no training image.")
    kept = list(_maps(net, test, workers, progress, "test images"))
    if not kept:
        raise UserError("There are no test images.")
    maps, labels = (torch.cat(part) for part in zip(*kept, strict=True))
    return BaseSession(means / images.view(-1, 1, 1, 1), vector_means / images.view(-1, 1), maps, labels)


def score(answers: Tensor, labels: Tensor, split: Split, session: int) -> Score:
    """Compare answers with the truth, for the classes that are known after a session.

    Args:
        answers: Class numbers (M,).
        labels: The true ones, (M,); images of classes to come are left out.
        split: The sessions.
        session: The session.
    """
    right = (answers == labels).double()
    base, before, seen = split.sizes[0], split.seen(session - 1) if session else 0, split.seen(session)

    def share(first: int, end: int) -> float | None:
        chosen = right[(labels >= first) & (labels < end)]
        return 100 * chosen.mean().item() if len(chosen) else None

    if not session:
        return Score(0, seen, share(0, seen), share(0, base))
    return Score(session, seen, share(0, seen), share(0, base), share(base, before), share(before, seen))


@torch.no_grad()
def _vectors(net: IncrementalNet, maps: Tensor) -> Tensor:
    return torch.cat([net.projector(part).features for part in maps.split(256)])


def run_sessions(
    net: IncrementalNet,
    kept: BaseSession,
    train: Dataset,
    labels: Sequence[int],
    split: Split,
    recipe: Recipe,
    seed: int = 0,
    progress: Progress = quietly,
) -> Outcome:
    """Learn all later sessions, one after the other, and measure after each.

    Beside the method stand two nearest-class-mean classifiers, by cosines, which learn nothing: on the backbone's
    features, and on the vectors of the first branch. They see the same images.

    Args:
        net: After the base session; it is left as it is.
        kept: From `look_at`.
        train: All training images, with the test images' transform.
        labels: The data set's class of each of them.
        split: The sessions.
        recipe: How to learn.
        seed: Of the shots that are drawn, and of training.
        progress: Shows how far it is.
    """
    generator = torch.Generator().manual_seed(seed)
    start, net = net, copy.deepcopy(net)
    place = {label: number for number, label in enumerate(split.order)}
    outcome = Outcome(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net.projector.add_branch(recipe.layers)
    device = net.head.etf_vec.device

    # The means of what is known, which the nearest-class-mean classifiers and the training data are made of.
    means, vector_means, test_vectors = kept.means, kept.vector_means, _vectors(start, kept.maps)
    baselines = {"class means, backbone": kept.maps.mean((2, 3)), "class means, projector": test_vectors}

    def measure(session: int) -> None:
        seen = split.seen(session)
        known = kept.labels < seen
        truth = kept.labels[known]
        ours = test_vectors if session == 0 else _vectors(net, kept.maps)
        answers = {"sessions": net.head(ours, seen)}
        for (name, vectors), centres in zip(baselines.items(), (means.mean((2, 3)), vector_means), strict=True):
            answers[name] = F.normalize(vectors, dim=1) @ F.normalize(centres, dim=1).T
        for name, scores in answers.items():
            outcome.scores.setdefault(name, []).append(score(scores[known].argmax(1), truth, split, session))

    measure(0)
    for session in progress(range(1, len(split.sizes)), f"sessions of seed {seed}"):
        chosen = draw_shots(split, labels, session, seed)
        maps = torch.cat([part for part, _ in _maps(net, Subset(train, chosen), 0, quietly, "shots")])
        classes = torch.tensor([place[labels[number]] for number in chosen], device=device)
        counts = [recipe.at("base_copies", session)] * split.sizes[0]
        counts += [recipe.old_copies] * (len(means) - split.sizes[0])
        repeats = torch.tensor(counts, device=device)
        data = torch.cat([means.repeat_interleave(repeats, 0), maps])
        targets = torch.cat([torch.arange(len(means), device=device).repeat_interleave(repeats), classes])
        _learn(net, data, targets, split, recipe, session, generator)
        new = [classes == number for number in range(split.seen(session - 1), split.seen(session))]
        shot_vectors = F.normalize(_vectors(start, maps), dim=1)
        means = torch.cat([means, torch.stack([maps[chosen].mean(0) for chosen in new])])
        vector_means = torch.cat([vector_means, torch.stack([shot_vectors[chosen].mean(0) for chosen in new])])
        net.classes = split.seen(session)
        measure(session)
    outcome.net = net
    return outcome


def _learn(
    net: IncrementalNet,
    data: Tensor,
    targets: Tensor,
    split: Split,
    recipe: Recipe,
    session: int,
    generator: torch.Generator,
) -> None:
    """Fit the projector to the maps of one session, in place."""
    projector = net.projector
    first = [*projector.base.parameters(), *projector.residual_proj.parameters()]
    groups = [dict(params=list(projector.new.parameters()), lr=recipe.lr)]
    for parameter in first:
        parameter.requires_grad_(recipe.first_branch_lr > 0)
    if recipe.first_branch_lr > 0:
        groups.append(dict(params=first, lr=recipe.lr * recipe.first_branch_lr))
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    steps = recipe.at("steps", session)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    size = min(recipe.batch_size, len(data))
    waiting: list[int] = []
    for _ in range(steps):
        if len(waiting) < size:  # smaller batches are dropped
            waiting = torch.randperm(len(data), generator=generator).tolist()
        batch, waiting = waiting[:size], waiting[size:]
        labels = targets[batch]
        projection = projector(data[batch])
        features, order = projection.features, None
        if torch.rand((), generator=generator) < recipe.mix_probability:
            order = torch.randperm(size, generator=generator).to(labels.device)
            features = mix_features(features, order)
        ends = [labels] if order is None else [labels, labels[order]]
        losses = [
            dot_regression_loss(
                features,
                net.head.targets(end),
                end if recipe.balanced else None,
                split.seen(session),
                recipe.loss_weight,
            )
            for end in ends
        ]
        apart = class_sensitive_losses(
            projection,
            labels,
            split.sizes[0],
            recipe.suppress_base,
            recipe.suppress_new,
            recipe.separate_base,
            recipe.separate_new,
        )
        loss = sum(losses) / len(losses) + sum(apart.values())
        if not torch.isfinite(loss):
            raise UserError(f"The loss of session {session} is {loss.item()}: try a smaller incremental.lr.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _rate(step: int, steps: int, edge: int = 5, least: float = 0.01) -> float:
    """Warm up linearly, follow a cosine, and stay at the least rate, as a share of the full one."""
    edge = min(edge, steps // 4)
    if step < edge:
        return (step + 1) / (edge + 1)
    done = min(1.0, (step - edge) / max(1, steps - 2 * edge))
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * done))

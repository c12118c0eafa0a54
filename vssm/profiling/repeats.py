"""Equal modules of a chain are run once where only shapes are worked out: the others cost what the first costs.

Most of a net is the same block again and again, and a trace of it takes longest.
"""

from collections import Counter
from functools import partial

from timm.layers import DropPath
from torch import Tensor, nn

__all__ = ["NotRepeated", "Repeats"]

# They do nothing in eval mode, whatever their rates.
_INERT = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, DropPath)
_CONTENTS = ("_parameters", "_buffers", "_modules", "training")


class NotRepeated(Exception):
    """A module that was to be run once is called otherwise than the one that stands for it."""


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and (a.shape, a.dtype) == (b.shape, b.dtype)
    try:
        return type(a) is type(b) and bool(a == b)
    except (ValueError, RuntimeError):  # arrays, whose comparison is no single answer
        return False


def _alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules in eval mode do the same operations on inputs of the same shape."""
    if isinstance(a, _INERT) and isinstance(b, _INERT):
        return True
    if type(a) is not type(b):
        return False
    own_a, own_b = ({k: v for k, v in vars(module).items() if k not in _CONTENTS} for module in (a, b))
    for mine, others in ((own_a, own_b), (a._parameters, b._parameters), (a._buffers, b._buffers)):
        if mine.keys() != others.keys() or not all(_equal(mine[name], others[name]) for name in mine):
            return False
    if a._modules.keys() != b._modules.keys():
        return False
    pairs = [(a._modules[name], b._modules[name]) for name in a._modules]
    return all(x is y if x is None or y is None else _alike(x, y) for x, y in pairs)


def _form(maps: object) -> tuple:
    """Shape and dtype of a tensor, or of each in a list."""
    if isinstance(maps, Tensor):
        return *maps.shape, maps.dtype
    if isinstance(maps, (list, tuple)):
        return tuple(map(_form, maps))
    raise NotRepeated


def _input(args: tuple, kwargs: dict) -> tuple:
    """The form of the only input."""
    if kwargs or len(args) != 1:
        raise NotRepeated
    return _form(args[0])


class _Again(nn.Module):
    """In place of a module: its output has the form of its input, as that of the module before it has."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple] = []

    def forward(self, *args, **kwargs):
        self.inputs.append(_input(args, kwargs))
        return args[0]


def _record(inputs: list[tuple], module: nn.Module, args: tuple, kwargs: dict, output) -> None:
    """A hook of the module that is run: keeps the forms of its inputs."""
    inputs.append(_input(args, kwargs))
    if _form(output) != inputs[-1]:
        raise NotRepeated


class Repeats:
    """Takes the repeated modules out of a model.

    Of the children of every `nn.Sequential`, and of every `nn.ModuleList` called "blocks", that are alike and follow
    each other, the first alone is left. Its output must have the form of its input, and the others must be called on
    inputs of the same forms: otherwise a run of the model, or `check` after it, raises NotRepeated.

    Args:
        model: In eval mode. It is changed.
    """

    def __init__(self, model: nn.Module):
        self.chains: dict[str, dict[str, _Again]] = {}  # first -> the others
        self._fold(model, "")
        self._inputs: dict[str, list[tuple]] = {first: [] for first in self.chains}
        for first, inputs in self._inputs.items():  # not before: a hook would make them unlike the others
            model.get_submodule(first).register_forward_hook(partial(_record, inputs), with_kwargs=True)

    def _fold(self, module: nn.Module, prefix: str) -> None:
        in_turn = type(module) is nn.Sequential or (
            type(module) is nn.ModuleList and prefix.rpartition(".")[0].endswith("blocks")
        )
        first: tuple[str, nn.Module] | None = None
        for key, child in list(module.named_children()):
            name = prefix + key
            if in_turn and first and _alike(first[1], child):
                module._modules[key] = self.chains.setdefault(first[0], {})[name] = _Again()
                continue
            first = (name, child) if any(True for _ in child.parameters()) else None
            self._fold(child, f"{name}.")

    def check(self) -> None:
        """Raises NotRepeated unless every module was called as the one that stands for it was."""
        for first, others in self.chains.items():
            if any(other.inputs != self._inputs[first] for other in others.values()):
                raise NotRepeated

    def add(self, counts: Counter) -> None:
        """Add what the modules that were taken out cost.

        Args:
            counts: By the name of a module what it and all inside it cost.
        """
        # Inner chains first: what is copied for an outer one then holds them.
        for first in sorted(self.chains, key=lambda name: -name.count(".")):
            inside = [name for name in counts if name == first or name.startswith(f"{first}.")]
            for other in self.chains[first]:
                for name in inside:
                    counts[other + name[len(first) :]] = counts[name]
                parts = other.split(".")[:-1]
                for i in range(len(parts) + 1):
                    above = ".".join(parts[:i])
                    counts[above] += counts[first]

"""Results of a count: totals, and the tree of the modules."""

from dataclasses import dataclass

__all__ = ["UNITS", "Cost", "ModuleCost", "short"]

# How a count is counted, and what one unit of it is called.
UNITS = {"paper": "FLOPs", "macs": "MACs", "flops": "FLOPs"}


def short(number: float) -> str:
    """A count with four digits and the SI letter: 4 906 000 000 is "4.906 G"."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.4g} {letter}"
    return f"{number:.0f}"


@dataclass(frozen=True)
class ModuleCost:
    """One module of a model.

    Attributes:
        name: Its name within the model, "" for the model itself.
        type: Name of its class.
        params: Parameters of it and all in it.
        flops: What it and all in it takes, in the unit of the count.
    """

    name: str
    type: str
    params: int
    flops: int

    @property
    def level(self) -> int:
        """Number of levels below the model."""
        return self.name.count(".") + 1 if self.name else 0


@dataclass(frozen=True)
class Cost:
    """Cost of one image.

    Attributes:
        kind: How it was counted, one of `UNITS`.
        backward: Whether the backward pass is in it.
        input_size: (C, H, W) of the image, or (C, D, H, W) of the volume.
        params: Parameters.
        flops: Operations in the unit of `kind`.
        activations: Elements of the outputs of all convolutions and matrix products of the forward pass.
        modules: Every module, the model first, a module before those in it.
    """

    kind: str
    backward: bool
    input_size: tuple[int, ...]
    params: int
    flops: int
    activations: int
    modules: tuple[ModuleCost, ...]

    def down_to(self, depth: int) -> list[ModuleCost]:
        """The modules that are at most `depth` levels below the model."""
        return [module for module in self.modules if module.level <= depth]

    def tree(self, depth: int = 2) -> str:
        """The modules as text, one a line: name, class, parameters, operations, share of all operations.

        Args:
            depth: Levels below the model; 0 is the model alone.
        """
        rows = [("module", "class", "params", UNITS[self.kind], "share")]
        for module in self.down_to(depth):
            name = "  " * module.level + (module.name.rpartition(".")[2] or "(model)")
            share = f"{module.flops / self.flops:.1%}" if self.flops else ""
            rows.append((name, module.type, short(module.params), short(module.flops), share))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, kind, *numbers in rows:
            cells = [name.ljust(widths[0]), kind.ljust(widths[1])]
            lines.append("  ".join(cells + [n.rjust(width) for n, width in zip(numbers, widths[2:], strict=True)]))
        return "\n".join(lines)

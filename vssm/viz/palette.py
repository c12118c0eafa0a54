"""The colours of all pictures, so that a colour means the same thing in each of them.

Most are Okabe and Ito's, which stay apart for all common kinds of colour blindness; where there are more things than
colours, pictures also tell them apart by shape or by a name at the end of a line.
"""

from collections.abc import Sequence

from ..models import families

__all__ = [
    "ANSWER",
    "BASELINE",
    "CLASSES",
    "FAINT",
    "INK",
    "RIGHT",
    "SERIES",
    "TRUTH",
    "WRONG",
    "class_colours",
    "family_colours",
]

# Letters and lines, and what lies behind them.
INK, FAINT = "#2b2f33", "#d5d9dd"
# An answer that is right, or that is not.
RIGHT, WRONG = "#1f6fb4", "#d9480f"
# Outlines over a picture: what is there, and what a model says is there.
TRUTH, ANSWER = "#009e73", WRONG
# Models of others, for comparison.
BASELINE = "#8a9096"
# Runs, or other things that have no colour of their own.
SERIES = (RIGHT, WRONG, "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
# Classes of a label map, the background left out. The last two are not Okabe and Ito's: there are ten digits.
CLASSES = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999"),
    *("#6a3d9a", "#7f4f24"),
)

_FAMILIES = {
    "vmamba": "#0072b2",
    "efficientvmamba": "#e69f00",
    "groupmamba": "#009e73",
    "msvmamba": "#cc79a7",
    "spatialmamba": "#d55e00",
    "vssd": "#7b3fbf",
    "efficientvim": "#56b4e9",
}
# Of families that have none above, in the order of registration.
_SPARE = ("#8c564b", "#7f8c1f", "#17829e", "#b5179e", "#4d4dff", "#2f6b2f")


def family_colours() -> dict[str, str]:
    """A colour for each family of the package, by its name, in the order of registration."""
    names = [family.name for family in families()]
    others = [name for name in names if name not in _FAMILIES]
    spare = {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}
    return {name: _FAMILIES.get(name) or spare[name] for name in names}


def class_colours(classes: Sequence[str]) -> list[str]:
    """A colour for each class but the first, the background; after the last colour they begin anew."""
    return [CLASSES[i % len(CLASSES)] for i in range(len(classes) - 1)]

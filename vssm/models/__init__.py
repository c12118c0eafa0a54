"""The families; importing this registers them with timm."""

# ruff: noqa: I001 (families stand in the order of the pages)
from ._backbone import Backbone, Stage, init_weights
from ._builder import published_weights
from ._checkpoint import read_checkpoint
from ._family import DenseMaps, Family, families, family_of, register_family

from . import vmamba as vmamba
from . import efficientvmamba as efficientvmamba
from . import groupmamba as groupmamba
from . import msvmamba as msvmamba
from . import spatialmamba as spatialmamba
from . import vssd as vssd
from . import efficientvim as efficientvim

__all__ = [
    "Backbone",
    "DenseMaps",
    "Family",
    "Stage",
    "families",
    "family_of",
    "init_weights",
    "published_weights",
    "read_checkpoint",
    "register_family",
]

"""The families; importing this registers them with timm."""

from . import efficientvim, efficientvmamba, groupmamba, msvmamba, spatialmamba, vmamba, vssd
from ._backbone import Backbone, Stage, init_weights
from ._builder import published_weights
from ._checkpoint import read_checkpoint

__all__ = [
    "Backbone",
    "Stage",
    "efficientvim",
    "efficientvmamba",
    "groupmamba",
    "init_weights",
    "msvmamba",
    "published_weights",
    "read_checkpoint",
    "spatialmamba",
    "vmamba",
    "vssd",
]

"""The families; importing this registers them with timm."""

from . import efficientvim, efficientvmamba, groupmamba, msvmamba, spatialmamba, vmamba, vssd
from ._checkpoint import read_checkpoint

__all__ = [
    "efficientvim",
    "efficientvmamba",
    "groupmamba",
    "msvmamba",
    "read_checkpoint",
    "spatialmamba",
    "vmamba",
    "vssd",
]

"""The families; importing this registers them with timm."""

from . import groupmamba, vmamba
from ._checkpoint import read_checkpoint

__all__ = ["groupmamba", "read_checkpoint", "vmamba"]

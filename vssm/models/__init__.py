"""The families; importing this registers them with timm."""

from . import groupmamba, msvmamba, vmamba
from ._checkpoint import read_checkpoint

__all__ = ["groupmamba", "msvmamba", "read_checkpoint", "vmamba"]

"""The families; importing this registers them with timm."""

from . import vmamba
from ._checkpoint import read_checkpoint

__all__ = ["read_checkpoint", "vmamba"]

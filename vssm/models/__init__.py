"""The families; importing this registers them with timm."""

# ruff: noqa: I001 (families stand in the order of the pages)
from ..checkpoint import read_checkpoint
from ._backbone import Backbone, Stage, StagedBackbone, drop_path_rates, init_weights, stage_dims, stage_info
from ._builder import published_weights
from ._family import DenseMaps, Family, families, family_of, register_family
from ._plain import PlainBackbone, TokenEmbedding, quarter_indices, resize_positions, resized_positions, token_index

from . import vmamba as vmamba
from . import efficientvmamba as efficientvmamba
from . import groupmamba as groupmamba
from . import msvmamba as msvmamba
from . import spatialmamba as spatialmamba
from . import vssd as vssd
from . import efficientvim as efficientvim
from . import vim as vim
from . import plainmamba as plainmamba
from . import segman as segman
from . import a2mamba as a2mamba
from . import mambayolo as mambayolo
from . import hrvmamba as hrvmamba

__all__ = [
    "Backbone",
    "DenseMaps",
    "Family",
    "PlainBackbone",
    "Stage",
    "StagedBackbone",
    "TokenEmbedding",
    "drop_path_rates",
    "families",
    "family_of",
    "init_weights",
    "published_weights",
    "read_checkpoint",
    "quarter_indices",
    "register_family",
    "resize_positions",
    "resized_positions",
    "stage_dims",
    "stage_info",
    "token_index",
]

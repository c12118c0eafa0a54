"""Decoders: the maps of an encoder, NCHW and of falling resolution, to one map of the image's resolution, NCHW.

Each takes the widths and the strides of the maps, and has `out_channels`. `forward_stages` gives the map after each of
its stages, coarse to fine; `finish` takes the last of these to the image's resolution; `forward` is both. An encoder
that gives one map more than it has stages (`StageInputEncoder`) ends with the bottleneck.
"""

from .hymamba import HyMambaDecoder
from .msvm import MSVMDecoder
from .unet import UNetDecoder
from .vm import MHSDecoder, VMDecoder
from .volume import VolumeDecoder

__all__ = ["HyMambaDecoder", "MHSDecoder", "MSVMDecoder", "UNetDecoder", "VMDecoder", "VolumeDecoder"]

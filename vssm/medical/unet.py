"""Encoder, decoder and a linear head: what all the networks here are."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._errors import did_you_mean
from ..layers import check_images
from ..models import Backbone
from .decoders import MHSDecoder, MSVMDecoder, UNetDecoder, VMDecoder
from .encoders import create_encoder

__all__ = ["DECODERS", "UNet", "create_unet"]

DECODERS: dict[str, type[nn.Module]] = {"unet": UNetDecoder, "msvm": MSVMDecoder, "vm": VMDecoder, "mhs": MHSDecoder}
ACTIVATIONS: dict[str | None, Callable[[], nn.Module]] = {
    None: nn.Identity,
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Softmax(dim=1),
}


class UNet(nn.Module):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes, H, W).

    Sizes that are no multiple of the encoder's coarsest stride are padded at the bottom and right by repeating the last
    row and column, and the logits cropped. An image of one channel is repeated when the encoder takes three.

    Args:
        encoder: images to a list of maps, see `vssm.medical.encoders`.
        decoder: maps to one map of the image's resolution, see `vssm.medical.decoders`.
        num_classes: outputs at each pixel.
        in_chans: channels that the encoder takes.
        activation: None for logits, "sigmoid" or "softmax" (over the classes) for probabilities.

    Raises:
        ValueError: an unknown activation, or no class.
    """

    def __init__(self, encoder: Any, decoder: Any, num_classes: int, in_chans: int = 3, activation: str | None = None):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be None, 'sigmoid' or 'softmax', got {activation!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.stride: int = encoder.reductions[-1]
        self.encoder = encoder
        self.decoder = decoder
        self.head = nn.Conv2d(decoder.out_channels, num_classes, 1)
        self.activation = ACTIVATIONS[activation]()

    def prepare(self, x: Tensor) -> Tensor:
        """The image as the encoder takes it: its channels repeated, its size padded.

        Raises:
            ValueError: not (B, in_chans, H, W), or an image without pixels.
        """
        repeat = x.ndim == 4 and self.in_chans == 3 and x.shape[1] == 1
        if x.ndim != 4 or not (repeat or x.shape[1] == self.in_chans):
            raise ValueError(
                f"{type(self).__name__} takes images (B, {self.in_chans}, H, W)"
                f"{' or (B, 1, H, W)' if self.in_chans == 3 else ''}, got {tuple(x.shape)}"
            )
        check_images(x, x.shape[1])
        if repeat:
            x = x.expand(-1, self.in_chans, -1, -1)
        bottom, right = -x.shape[2] % self.stride, -x.shape[3] % self.stride
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The state-space parameters, and what the encoder's backbone spares; the official recipes decay all."""
        spared = {n for n, _ in self.named_parameters() if n.rpartition(".")[2] in Backbone.state_space_parameters}
        for prefix, module in self.encoder.named_modules(prefix="encoder"):
            if hasattr(module, "no_weight_decay"):
                spared |= {f"{prefix}.{name}" for name in module.no_weight_decay()}
        return spared

    def forward_intermediates(self, x: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The maps of the encoder, and those after the decoder's stages; NCHW, of the padded image."""
        maps = self.encoder(self.prepare(x))
        return maps, self.decoder.forward_stages(maps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans or 1, H, W) to (B, num_classes, H, W)."""
        height, width = x.shape[-2:]
        x = self.head(self.decoder(self.encoder(self.prepare(x))))
        return self.activation(x[:, :, :height, :width])


def create_unet(
    decoder: str = "unet",
    encoder: str = "vmamba_tiny_s1l8",
    num_classes: int = 1,
    in_chans: int = 3,
    pretrained: bool | str | PathLike = False,
    activation: str | None = None,
    skip_stage_inputs: bool = False,
    encoder_options: Mapping[str, Any] | None = None,
    **decoder_options: Any,
) -> UNet:
    """Any backbone under any decoder.

    Args:
        decoder: "unet" (convolutions), "msvm" (MSVM-UNet), "vm" (VM-UNet) or "mhs" (MHS-UNet).
        encoder: a name from timm's registry, of this package or of timm.
        num_classes: outputs at each pixel.
        in_chans: channels of the image; images of one channel also fit 3.
        pretrained: True for the encoder's published ImageNet weights, or a file with them.
        activation: None for logits, "sigmoid" or "softmax" for probabilities.
        skip_stage_inputs: the skips are the inputs of the encoder's stages, not their outputs.
        encoder_options: more arguments of ``timm.create_model``, such as ``drop_path_rate``.
        **decoder_options: arguments of the decoder's class, such as ``drop_path_rate``.

    Returns:
        The network.

    Raises:
        ValueError: an unknown name or option, weights that do not fit, or a backbone without such maps.

    Example:
        >>> net = create_unet("msvm", "vmamba_pico", num_classes=4)
        >>> net(torch.randn(2, 1, 75, 101)).shape
        torch.Size([2, 4, 75, 101])
    """
    if decoder not in DECODERS:
        raise ValueError(
            f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}{did_you_mean(decoder, DECODERS)}"
        )
    backbone = create_encoder(encoder, in_chans, pretrained, skip_stage_inputs, encoder_options)
    try:
        head = DECODERS[decoder](backbone.channels, backbone.reductions, **decoder_options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"the decoder '{decoder}' does not take all of {sorted(decoder_options)}: {error}") from error
    return UNet(backbone, head, num_classes, in_chans, activation)

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
from .decoders import HyMambaDecoder, MHSDecoder, MSVMDecoder, UNetDecoder, VMDecoder, VolumeDecoder
from .encoders import create_encoder
from .volume_encoders import SlicesSSM, create_volume_encoder

__all__ = ["DECODERS", "UNet", "VolumeUNet", "create_unet"]

DECODERS: dict[str, type[nn.Module]] = {"unet": UNetDecoder, "msvm": MSVMDecoder, "vm": VMDecoder, "mhs": MHSDecoder}
VOLUME_DECODERS: dict[str, type[nn.Module]] = {"unet": VolumeDecoder, "hymamba": HyMambaDecoder}
BOTTLENECKS: dict[str, type[nn.Module]] = {"conv_ssm": SlicesSSM}
# Where none is named, by the number of dimensions.
DEFAULT_ENCODERS = {2: "vmamba_tiny_s1l8", 3: "vmamba3d_tiny"}
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

    spatial_dims = 2

    def __init__(self, encoder: Any, decoder: Any, num_classes: int, in_chans: int = 3, activation: str | None = None):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be None, 'sigmoid' or 'softmax', got {activation!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.stride: Any = encoder.reductions[-1]
        self.encoder = encoder
        self.decoder = decoder
        conv = nn.Conv2d if self.spatial_dims == 2 else nn.Conv3d
        self.head = conv(decoder.out_channels, num_classes, 1)
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

    def encode(self, x: Tensor) -> list[Tensor]:
        """The maps of the encoder, of the padded image."""
        return self.encoder(self.prepare(x))

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
        maps = self.encode(x)
        return maps, self.decoder.forward_stages(maps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans or 1, H, W) to (B, num_classes, H, W)."""
        height, width = x.shape[-2:]
        x = self.head(self.decoder(self.encode(x)))
        return self.activation(x[:, :, :height, :width])


class VolumeUNet(UNet):
    """Volumes (B, in_chans, D, H, W) of any size to logits (B, num_classes, D, H, W).

    Sizes that are no multiple of the encoder's coarsest stride are padded behind by repeating the last voxels, and the
    logits cropped.

    Args:
        encoder: volumes to a list of maps, see `vssm.medical.volume_encoders`.
        decoder: maps to one map of the volume's resolution.
        num_classes: outputs at each voxel.
        in_chans: channels that the encoder takes.
        activation: None for logits, "sigmoid" or "softmax" (over the classes) for probabilities.
        bottleneck: of the encoder's last map (B, C, D', H', W') to another of its shape; None: nothing.

    Raises:
        ValueError: an unknown activation, or no class.
    """

    spatial_dims = 3

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        num_classes: int,
        in_chans: int = 1,
        activation: str | None = None,
        bottleneck: nn.Module | None = None,
    ):
        super().__init__(encoder, decoder, num_classes, in_chans, activation)
        self.bottleneck = nn.Identity() if bottleneck is None else bottleneck

    def encode(self, x: Tensor) -> list[Tensor]:
        """The maps of the encoder, of the padded volume, the last one behind the bottleneck."""
        *maps, last = self.encoder(self.prepare(x))
        return [*maps, self.bottleneck(last)]

    def prepare(self, x: Tensor) -> Tensor:
        """The volume as the encoder takes it: its size padded.

        Raises:
            ValueError: not (B, in_chans, D, H, W), or a volume without voxels.
        """
        if x.ndim != 5 or x.shape[1] != self.in_chans or 0 in x.shape[1:]:
            raise ValueError(
                f"{type(self).__name__} takes volumes (B, {self.in_chans}, D, H, W), got {tuple(x.shape)}"
                f"{'; images have no spatial_dims=3' if x.ndim == 4 else ''}"
            )
        missing = [-size % step for size, step in zip(x.shape[2:], self.stride, strict=True)]
        pads = [pad for behind in reversed(missing) for pad in (0, behind)]
        return F.pad(x, pads, mode="replicate") if any(missing) else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, D, H, W) to (B, num_classes, D, H, W)."""
        depth, height, width = x.shape[-3:]
        x = self.head(self.decoder(self.encode(x)))
        return self.activation(x[:, :, :depth, :height, :width])


def create_unet(
    decoder: str = "unet",
    encoder: str | None = None,
    num_classes: int = 1,
    in_chans: int | None = None,
    pretrained: bool | str | PathLike = False,
    activation: str | None = None,
    skip_stage_inputs: bool = False,
    encoder_options: Mapping[str, Any] | None = None,
    spatial_dims: int = 2,
    bottleneck: str | None = None,
    **decoder_options: Any,
) -> UNet:
    """Any backbone under any decoder, for images or for volumes.

    Args:
        decoder: "unet" (convolutions), "msvm" (MSVM-UNet), "vm" (VM-UNet) or "mhs" (MHS-UNet); for volumes "unet"
            (MONAI's blocks) or "hymamba" (HyMamba).
        encoder: a name from timm's registry, of this package or of timm, "vmamba_tiny_s1l8" by default; for volumes one
            of `vssm.medical.volume_encoders`, "vmamba3d_tiny" by default ("hymamba" for the decoder "hymamba").
        num_classes: outputs at each pixel.
        in_chans: channels of the image, by default 3, which images of one channel also fit; of volumes, by default 1.
        pretrained: True for the encoder's published ImageNet weights, or a file with them; for volumes only a file.
        activation: None for logits, "sigmoid" or "softmax" for probabilities.
        skip_stage_inputs: the skips are the inputs of the encoder's stages, not their outputs; not for volumes.
        encoder_options: more arguments of ``timm.create_model``, such as ``drop_path_rate``; of volumes' encoders, such
            as ``strides``.
        spatial_dims: 2 for images (B, C, H, W), 3 for volumes (B, C, D, H, W).
        bottleneck: what the coarsest map of a volume goes through: None, or "conv_ssm"
            (`vssm.medical.volume_encoders.SlicesSSM`).
        **decoder_options: arguments of the decoder's class, such as ``drop_path_rate``.

    Returns:
        The network.

    Raises:
        ValueError: an unknown name or option, weights that do not fit, or a backbone without such maps.
        MissingExtraError: a network of volumes without MONAI.

    Example:
        >>> net = create_unet("msvm", "vmamba_pico", num_classes=4)
        >>> net(torch.randn(2, 1, 75, 101)).shape
        torch.Size([2, 4, 75, 101])
        >>> net = create_unet(encoder="vmamba3d_pico", num_classes=4, spatial_dims=3)
        >>> net(torch.randn(1, 1, 20, 33, 30)).shape
        torch.Size([1, 4, 20, 33, 30])
    """
    if spatial_dims not in DEFAULT_ENCODERS:
        raise ValueError(f"spatial_dims must be 2 (images) or 3 (volumes), got {spatial_dims!r}")
    volumes = spatial_dims == 3
    decoders = VOLUME_DECODERS if volumes else DECODERS
    if decoder not in decoders:
        raise ValueError(
            f"decoder must be one of {', '.join(decoders)}{' for volumes' if volumes else ''}, got {decoder!r}"
            f"{did_you_mean(decoder, decoders)}"
        )
    if bottleneck is not None and bottleneck not in BOTTLENECKS:
        raise ValueError(f"bottleneck must be None or {', '.join(BOTTLENECKS)}, got {bottleneck!r}")
    encoder = encoder or ("hymamba" if decoder == "hymamba" else DEFAULT_ENCODERS[spatial_dims])
    in_chans = in_chans or (1 if volumes else 3)
    backbone: Any
    if volumes:
        if skip_stage_inputs:
            raise ValueError(
                "skip_stage_inputs is for images: the encoders of volumes give the outputs of their stages"
            )
        backbone = create_volume_encoder(encoder, in_chans, pretrained, encoder_options)
    else:
        if bottleneck is not None:
            raise ValueError(f"bottleneck is for volumes, and must be None for images, got {bottleneck!r}")
        backbone = create_encoder(encoder, in_chans, pretrained, skip_stage_inputs, encoder_options)
    try:
        head = decoders[decoder](backbone.channels, backbone.reductions, **decoder_options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"the decoder '{decoder}' does not take all of {sorted(decoder_options)}: {error}") from error
    if not volumes:
        return UNet(backbone, head, num_classes, in_chans, activation)
    between = None if bottleneck is None else BOTTLENECKS[bottleneck](backbone.channels[-1])
    return VolumeUNet(backbone, head, num_classes, in_chans, activation, between)

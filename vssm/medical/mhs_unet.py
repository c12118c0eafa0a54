"""MHS-UNet: "MHS-VM: Multi-Head Scanning in Parallel Subspaces for Vision Mamba" (arXiv 2406.05992).

Official code: https://github.com/PixDeep/MHS-VM (Apache-2.0). VM-UNet with another token mixer,
`vssm.scans.MultiHeadSS2D`. The same outputs, up to rounding; what differs:

- the logits come out, where the official network of one class ends in a sigmoid: `activation="sigmoid"` gives that;
- any image size: the routes are computed for it, where the official code reads them from a file for 256 x 256;
- the gate's threshold is an argument. It is in no checkpoint: the published results are tested with 0.4, whatever it
  was in training (0.0 for ISIC17, 0.5 for ISIC18).
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..layers import MixerBlock, PatchMerging, PatchStem
from ..models import Stage, StagedBackbone, drop_path_rates, stage_dims, stage_info
from ..scans import DIAGONAL, RASTER, SNAKE, SPIRAL, MultiHeadSS2D, Route
from .decoders import MHSDecoder
from .encoders import StageInputEncoder
from .unet import UNet

__all__ = ["MHSBackbone", "mhs_unet_3head", "mhs_unet_4head"]


class MHSBackbone(StagedBackbone):
    """The encoder of MHS-UNet: stem and stages only, no classifier.

    Args:
        heads: the routes of each head, see `MultiHeadSS2D`.
        threshold: of the gate over a head's routes.
        in_chans: channels of the image.
        depths: blocks of each stage.
        embed_dim: width of the first stage, doubled by every further one.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0.
    """

    def __init__(
        self,
        heads: Sequence[Sequence[Route]],
        threshold: float,
        in_chans: int = 3,
        depths: Sequence[int] = (2, 2, 2, 2),
        embed_dim: int = 96,
        drop_path_rate: float = 0.2,
    ):
        super().__init__(in_chans, num_classes=0, drop_rate=0.0)
        mixer = partial(MultiHeadSS2D, heads=heads, threshold=threshold)
        dims = stage_dims(embed_dim, depths)
        self.stem = PatchStem(in_chans, dims[0])
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            down = PatchMerging(dims[i - 1], dims[i]) if i > 0 else nn.Identity()
            stages.append(Stage(down, [MixerBlock(dims[i], mixer(dims[i]), drop_path=rate) for rate in rates]))
        self.stages = nn.Sequential(*stages)
        self.feature_info = stage_info(dims)
        self.init_weights()


def _mhs_unet(
    heads: Sequence[Sequence[Route]],
    num_classes: int = 1,
    in_chans: int = 3,
    threshold: float = 0.4,
    depths: Sequence[int] = (2, 2, 2, 2),
    decoder_depths: Sequence[int] = (2, 2, 2, 1),
    embed_dim: int = 96,
    drop_path_rate: float = 0.2,
    activation: str | None = None,
) -> UNet:
    encoder = StageInputEncoder(MHSBackbone(heads, threshold, in_chans, depths, embed_dim, drop_path_rate))
    decoder = MHSDecoder(encoder.channels, encoder.reductions, decoder_depths, drop_path_rate, heads, threshold)
    return UNet(encoder, decoder, num_classes, in_chans, activation)


def mhs_unet_4head(**options) -> UNet:
    """MHS-UNet with heads along snakes, diagonals, spirals and rasters. No ImageNet weights exist.

    Args:
        num_classes: outputs at each pixel; 1.
        in_chans: channels of the image, 3; images of one channel also fit.
        threshold: of the gate over a head's routes, 0.4.
        depths: blocks of the encoder's stages, (2, 2, 2, 2).
        decoder_depths: blocks of the decoder's stages, coarse to fine, (2, 2, 2, 1).
        embed_dim: width at stride 4, 96.
        drop_path_rate: stochastic depth of the encoder's last and the decoder's first block, 0.2.
        activation: None for logits; "sigmoid" is what the official network of one class does.

    Example:
        >>> net = mhs_unet_4head(threshold=0.5)
        >>> net(torch.randn(1, 3, 256, 256)).shape
        torch.Size([1, 1, 256, 256])
    """
    return _mhs_unet((SNAKE, DIAGONAL, SPIRAL, RASTER), **options)


def mhs_unet_3head(**options) -> UNet:
    """MHS-UNet without the raster head. Arguments of `mhs_unet_4head`."""
    return _mhs_unet((SNAKE, DIAGONAL, SPIRAL), **options)

"""VM-UNet: "VM-UNet: Vision Mamba UNet for Medical Image Segmentation" (arXiv 2402.02491).

Official code: https://github.com/JCruan519/VM-UNet (Apache-2.0). The same outputs, up to rounding; what differs:

- the logits come out, where the official network of one class ends in a sigmoid: `activation="sigmoid"` gives that;
- any image size (officially multiples of 32), by padding;
- ImageNet weights that do not fit are an error, where the official loader keeps its random start.

The skips are the inputs of the encoder's stages; the first of them is never used, as officially.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Any

from timm.models import resolve_pretrained_cfg

from ..checkpoint import load_weights, read_checkpoint
from ..models import published_weights
from .checkpoint import imagenet_filter_fn
from .unet import UNet, create_unet

__all__ = ["vm_unet"]


def vm_unet(
    num_classes: int = 1,
    in_chans: int = 3,
    pretrained: bool | str | PathLike = False,
    depths: Sequence[int] = (2, 2, 2, 2),
    decoder_depths: Sequence[int] = (2, 2, 2, 1),
    drop_path_rate: float = 0.2,
    activation: str | None = None,
) -> UNet:
    """VM-UNet as configured for ISIC (1 class) and Synapse (9 classes).

    The depths that the official constructor has when nothing is configured, (2, 2, 9, 2) and (2, 9, 2, 2), make
    a larger network.

    Args:
        num_classes: outputs at each pixel.
        in_chans: channels of the image; images of one channel also fit 3.
        pretrained: True for the ImageNet weights of `vmamba_small_v0` in the encoder and in the decoder's blocks, as
            officially; or a file of the first VMamba's weights, at least as deep.
        depths: blocks of the encoder's stages, fine to coarse.
        decoder_depths: blocks of the decoder's stages, coarse to fine.
        drop_path_rate: stochastic depth of the encoder's last and the decoder's first block.
        activation: None for logits; "sigmoid" is what the official network of one class does.

    Raises:
        ValueError: weights of another model, for example of a later VMamba.

    Example:
        >>> net = vm_unet(num_classes=9)
        >>> net(torch.randn(1, 1, 224, 224)).shape
        torch.Size([1, 9, 224, 224])
    """
    net = create_unet(
        "vm",
        "vmamba_tiny_v0",
        num_classes,
        in_chans,
        activation=activation,
        skip_stage_inputs=True,
        encoder_options=dict(depths=tuple(depths), drop_path_rate=drop_path_rate),
        depths=decoder_depths,
        drop_path_rate=drop_path_rate,
    )
    if pretrained:
        if pretrained is True:
            source = "vmamba_small_v0"
            checkpoint: Any = published_weights(source, resolve_pretrained_cfg(source).to_dict(), None)
        else:
            checkpoint = read_checkpoint(pretrained)
        weights = imagenet_filter_fn(checkpoint, net)
        load_weights(net, weights, [name for name in net.state_dict() if name not in weights])
    return net

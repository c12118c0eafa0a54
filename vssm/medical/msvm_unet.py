"""MSVM-UNet: "MSVM-UNet: Multi-Scale Vision Mamba UNet for Medical Image Segmentation" (arXiv 2408.13735).

Official code: https://github.com/gndlwch2w/msvm-unet, without a licence: written anew from the paper. The same outputs,
up to rounding. A VMamba backbone under the decoder of `vssm.medical.decoders.msvm`.

No trained weights were published. The official README names another file for the encoder's weights than the code
needs; here a file that does not fit is an error. The published results are those of the checkpoint that was best on the
test set.
"""

from os import PathLike

from .unet import UNet, create_unet

__all__ = ["msvm_unet_small", "msvm_unet_tiny"]


def msvm_unet_tiny(
    num_classes: int = 9,
    in_chans: int = 3,
    pretrained: bool | str | PathLike = False,
    drop_path_rate: float = 0.2,
    activation: str | None = None,
) -> UNet:
    """MSVM-UNet with VMamba-T[s1l8] as its encoder.

    Args:
        num_classes: 9 for Synapse and 4 for ACDC, with the background.
        in_chans: channels of the image; images of one channel also fit 3.
        pretrained: True for VMamba's published ImageNet weights in the encoder, or a file with them.
        drop_path_rate: stochastic depth of the encoder's last and the decoder's first block.
        activation: None for logits, as officially, "sigmoid" or "softmax" for probabilities.

    Raises:
        ValueError: weights that are not this encoder's.

    Example:
        >>> net = msvm_unet_tiny(num_classes=4)
        >>> net(torch.randn(1, 1, 224, 224)).shape
        torch.Size([1, 4, 224, 224])
    """
    encoder_options = dict(drop_path_rate=drop_path_rate)
    return create_unet(
        "msvm",
        "vmamba_tiny_s1l8",
        num_classes,
        in_chans,
        pretrained,
        activation,
        encoder_options=encoder_options,
        drop_path_rate=drop_path_rate,
    )


def msvm_unet_small(
    num_classes: int = 9,
    in_chans: int = 3,
    pretrained: bool | str | PathLike = False,
    activation: str | None = None,
) -> UNet:
    """MSVM-UNet with VMamba-S[s1l20] as its encoder; the official code has it, the paper does not.

    Args: see `msvm_unet_tiny`; the stochastic depth is 0.3 in the encoder and 0.2 in the decoder.
    """
    encoder_options = dict(drop_path_rate=0.3)
    return create_unet(
        "msvm", "vmamba_small_s1l20", num_classes, in_chans, pretrained, activation, encoder_options=encoder_options
    )

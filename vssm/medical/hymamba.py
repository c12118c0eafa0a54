"""HyMamba: "MambaMIM: Pre-training Mamba with State Space Token Interpolation" (arXiv 2408.08070, its network).

Official code: https://github.com/FengheTan9/MambaMIM, Apache-2.0; see `vssm.medical.hymamba_encoder` for what differs.
The published weights, `mambamim_mask75.pth`, are the encoder's alone, pre-trained on CT volumes of 1.5 mm.
"""

from os import PathLike

from .unet import UNet, create_unet

__all__ = ["hymamba"]


def hymamba(
    num_classes: int = 14,
    in_chans: int = 1,
    pretrained: bool | str | PathLike = False,
    activation: str | None = None,
    img_size: int = 96,
) -> UNet:
    """HyMamba for volumes; 41,841,134 parameters for the 14 classes of BTCV.

    Args:
        num_classes: 14 for BTCV, with the background.
        in_chans: channels of the volume.
        pretrained: a file with weights of the encoder, in an official layout or ours.
        activation: None for logits, "sigmoid" or "softmax" for probabilities.
        img_size: side of the cubes whose table of positions is part of the weights; volumes may have any size.

    Raises:
        ValueError: weights that are not this encoder's.
        MissingExtraError: MONAI is not installed.
    """
    options = dict(img_size=img_size)
    return create_unet(
        "hymamba", "hymamba", num_classes, in_chans, pretrained, activation, encoder_options=options, spatial_dims=3
    )

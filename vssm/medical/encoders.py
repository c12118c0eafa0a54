"""Backbones as encoders: images (B, C, H, W) to maps (B, C', H', W') of falling resolution."""

from collections.abc import Mapping
from os import PathLike
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import timm
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from .._errors import did_you_mean
from ..checkpoint import read_checkpoint, unwrap_state_dict
from ..models import Stage, StagedBackbone

__all__ = ["Encoder", "StageInputEncoder", "create_encoder"]


class Encoder(nn.Module):
    """The feature maps of a timm backbone, NCHW, one for each stage.

    Args:
        backbone: what ``timm.create_model(..., features_only=True)`` gives.

    Attributes:
        channels: width of each map.
        reductions: stride of each map against the image.
    """

    def __init__(self, backbone: FeatureGetterNet):
        super().__init__()
        self.backbone = backbone
        self.channels: list[int] = backbone.feature_info.channels()
        self.reductions: list[int] = backbone.feature_info.reduction()
        self.channels_last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.backbone(x)
        return [y.permute(0, 3, 1, 2) for y in maps] if self.channels_last else list(maps)


class StageInputEncoder(nn.Module):
    """The inputs of a backbone's stages, after downsampling, and at the end the output of the last.

    VM-UNet (arXiv 2402.02491) and MHS-UNet (arXiv 2406.05992) take their skips there.

    Args:
        backbone: a model of this package.

    Attributes: as of `Encoder`, of the stages; there is one map more.

    Raises:
        ValueError: the backbone's stages are not a downsampling and blocks after it.
    """

    if TYPE_CHECKING:  # TorchScript would take it for the type of what it compiles
        backbone: Any

    def __init__(self, backbone: nn.Module):
        super().__init__()
        stages = [stage for stage in getattr(backbone, "stages", ()) if isinstance(stage, Stage)]
        if not isinstance(backbone, StagedBackbone) or len(stages) != len(backbone.stages):
            raise ValueError(
                f"{type(backbone).__name__} does not say what goes into its stages; use skip_stage_inputs=False, or a "
                f"backbone of vssm other than EfficientViM"
            )
        self.channels = [info["num_chs"] for info in backbone.feature_info]
        self.reductions = [info["reduction"] for info in backbone.feature_info]
        self.backbone = backbone

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.backbone.stem(x)
        maps = []
        for stage in self.backbone.stages:
            x = stage.downsample(x)
            maps.append(x)
            x = stage.forward_blocks(x)
        return [y.permute(0, 3, 1, 2) for y in [*maps, x]]


def create_encoder(
    name: str,
    in_chans: int = 3,
    pretrained: bool | str | PathLike = False,
    stage_inputs: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Encoder | StageInputEncoder:
    """A backbone of timm's registry as an encoder.

    Args:
        name: of this package or of timm.
        in_chans: channels of the image.
        pretrained: True for the published ImageNet weights, or a file with them, in an official layout or ours.
        stage_inputs: give the stages' inputs, see `StageInputEncoder`, in place of their outputs.
        options: more arguments of ``timm.create_model``.

    Raises:
        ValueError: unknown name, no weights, weights of another model, or a backbone that does not fit an encoder.
        FileNotFoundError: there is no such file.
    """
    if ":" not in name and not timm.is_model(name):
        raise ValueError(f"timm knows no model '{name}'{did_you_mean(name.split('.')[0], timm.list_models())}")
    options = dict(options or {}, in_chans=in_chans, pretrained=bool(pretrained))
    if not isinstance(pretrained, bool):
        # Read here, because timm's reader lets through whatever a damaged file makes it raise.
        stored = read_checkpoint(pretrained)
        ours = ":" not in name and timm.models.model_entrypoint(name).__module__.startswith("vssm.")
        overlay = {"state_dict": stored if ours else unwrap_state_dict(stored)}
        options["pretrained_cfg_overlay"] = dict(options.get("pretrained_cfg_overlay") or {}, **overlay)
    try:
        backbone: Any = timm.create_model(name, features_only=True, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"the encoder '{name}' does not take all of {sorted(options)}: {error}") from error
    except (AttributeError, AssertionError, RuntimeError) as error:
        if pretrained is True:
            raise
        reason = shorten(str(error), 300)
        if pretrained:
            raise ValueError(f"the weights in {pretrained} cannot be loaded into '{name}': {reason}") from error
        raise ValueError(f"'{name}' gives no feature maps of its stages: {reason}") from error
    encoder = StageInputEncoder(getattr(backbone, "model", backbone)) if stage_inputs else Encoder(backbone)
    ratios = [b / a for a, b in zip(encoder.reductions, encoder.reductions[1:], strict=False)]
    if len(encoder.reductions) < 2 or any(ratio < 2 or ratio != int(ratio) for ratio in ratios):
        raise ValueError(
            f"the maps of '{name}' have the strides {encoder.reductions}; a decoder needs at least two, each a "
            f"multiple of the one before"
        )
    return encoder

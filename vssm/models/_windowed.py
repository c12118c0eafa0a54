"""What the files of SegMAN and A2Mamba share beside layers: official names, how weights start, how stages go away."""

import re
from typing import Any, List, Union

import torch
import torch.nn as nn
from timm.layers import trunc_normal_
from torch import Tensor

from ..scans import MapAttention
from ._backbone import StagedBackbone

__all__ = ["WINDOWED_RENAMES", "WindowedBackbone", "spread_angles"]

# Official name -> ours, in order.
WINDOWED_RENAMES = (
    (r"^patch_embed\.0\.", "stem.conv1.conv."),
    (r"^patch_embed\.1\.", "stem.conv1.norm."),
    (r"^patch_embed\.3\.", "stem.conv2.conv."),
    (r"^patch_embed\.4\.", "stem.conv2.norm."),
    (r"^patch_embed\.6\.", "stem.conv3.conv."),
    (r"^patch_embed\.7\.", "stem.conv3.norm."),
    (r"^patch_embed\.9\.", "stem.conv4.conv."),
    (r"^patch_embed\.10\.", "stem.conv4.norm."),
    (r"^layers\.([135])\.0\.", r"layers.\1.downsample.conv."),
    (r"^layers\.([135])\.1\.", r"layers.\1.downsample.norm."),
    (r"^layers\.0\.", "stages.0."),
    (r"^layers\.[12]\.", "stages.1."),
    (r"^layers\.[34]\.", "stages.2."),
    (r"^layers\.[56]\.", "stages.3."),
    (r"\.cpe([12])\.", r".pos_conv\1."),
    (r"\.layer_scale([12])\.", r".scale\1."),
    (r"\.mlp\.dwconv\.", ".mlp.conv."),
    (r"\.token_mixer\.", ".mixer."),
    (r"\.ssm\.x_proj_weight$", ".ssm.x_proj.weight"),
    (r"^classifier\.0\.", "head.hidden.linear."),
    (r"^classifier\.1\.", "head.hidden.norm."),
    (r"^classifier\.4\.", "head.fc."),
)


def spread_angles(weights: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Give each block of official weights the angles of its stage, and take the sizes of one from the classifier."""
    result = {}
    for name, value in weights.items():
        stage = re.fullmatch(r"layers\.([0246])\.rope\.angle", name)
        if stage and int(stage[1]) // 2 < len(model.stages):
            for i in range(len(model.stages[int(stage[1]) // 2].blocks)):
                result[f"layers.{stage[1]}.blocks.{i}.token_mixer.angle"] = value
        elif name == "classifier.4.weight":
            result[name] = value.flatten(1)
        else:
            result[name] = value
    return result


@torch.no_grad()
def _init_convolutions(network: nn.Module) -> None:
    """Start all convolutions and linear layers outside of the mixers: truncated-normal weights, biases of zero."""
    for module in network.children():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                module.bias.zero_()
        elif not isinstance(module, MapAttention):
            _init_convolutions(module)


class WindowedBackbone(StagedBackbone):
    """A backbone of stages whose mixers are `MapAttention`s and whose head is a `HiddenHead`."""

    @torch.jit.ignore
    def init_weights(self) -> None:
        super().init_weights()
        if not next(self.parameters()).is_meta:  # no values to set
            _init_convolutions(self)

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop the stages after the last one wanted, and the head if asked to; a new one takes the map that is left."""
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.head.dim = self.num_features
        return take_indices

"""Mamba YOLO on mmdet's parts: the neck, the detector, and the names of official weights (arXiv 2406.05835)."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import rename, reshape_like
from ..layers import YOLO_NORM, ConvNorm, ODSSBlock
from ..models.mambayolo import BLOCK_RENAMES, YOLOSS2D

__all__ = ["BoxesAndScores", "MambaYOLODetector", "ODSSPAFPN"]

# Official name -> ours, in order. The layers 0 to 8 are the backbone's, which renames them itself.
_RENAMES = (
    (r"^model\.(?=\d)", ""),
    (r"^([0-8]\.)", r"backbone.\1"),
    (r"^11\.", "neck.top_down.0."),
    (r"^14\.", "neck.top_down.1."),
    (r"^15\.", "neck.downsamples.0."),
    (r"^17\.", "neck.bottom_up.0."),
    (r"^18\.", "neck.downsamples.1."),
    (r"^20\.", "neck.bottom_up.1."),
    (r"^21\.cv2\.", "bbox_head.box_branches."),
    (r"^21\.cv3\.", "bbox_head.cls_branches."),
)
_NECK_RENAMES = (
    (r"(\.(top_down|bottom_up)\.\d+)\.in_proj\.0\.", r"\1.proj.linear."),
    (r"(\.(top_down|bottom_up)\.\d+)\.in_proj\.1\.", r"\1.proj.norm."),
    (r"\.ss2d\.", ".mixer."),
    (r"(\.(downsamples|box_branches|cls_branches)\..*)bn\.", r"\1norm."),
    *BLOCK_RENAMES,
)
_OFFICIAL = re.compile(r"(model\.)?(0\.conv\.0|21\.cv2\.0\.0\.conv)\.weight")
# The distances 0 to 15, which are no weights.
_FIXED = "21.dfl.conv.weight"


@MODELS.register_module()
class ODSSPAFPN(BaseModule):
    """Mix maps from the coarsest to the finest and back, in ODSS blocks; every level keeps its width.

    On the way down a map is enlarged (nearest pixel), on the way up halved by a convolution, and laid beside the one of
    the next level, which a block makes one of. Maps of odd sizes are met as they are.

    It is in mmengine's root registry.

    Args:
        in_channels: Widths of the maps, the finest first, each half as large as the one before it.
        depth: Scans in a row in each block.
        d_state: States per channel of the scans.
        ssm_ratio: Inner width of the scans as a multiple of the width.
        mlp_ratio: See `ODSSBlock`.
        init_cfg: As in mmengine.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        depth: int = 1,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        mlp_ratio: float = 4.0,
        init_cfg: Any = None,
    ):
        super().__init__(init_cfg)
        self.in_channels = self.out_channels = list(in_channels)

        def block(path: int, lateral: int, dim: int) -> ODSSBlock:
            scans = [YOLOSS2D(dim, d_state=d_state, ssm_ratio=ssm_ratio) for _ in range(depth)]
            return ODSSBlock(path + lateral, dim, nn.Sequential(*scans), proj_bias=False, mlp_ratio=mlp_ratio)

        pairs = list(zip(self.in_channels, self.in_channels[1:], strict=False))
        self.top_down = nn.ModuleList([block(coarse, fine, fine) for fine, coarse in reversed(pairs)])
        self.downsamples = nn.ModuleList(
            [ConvNorm(fine, fine, stride=2, act=True, act_layer=nn.SiLU, **YOLO_NORM) for fine, _ in pairs]
        )
        self.bottom_up = nn.ModuleList([block(fine, coarse, coarse) for fine, coarse in pairs])

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, C, H, W), the finest first, to the same shapes."""
        maps = [x.permute(0, 2, 3, 1) for x in inputs]
        x = maps.pop()
        laterals = [x]
        for block in self.top_down:
            lateral = maps.pop()
            size = lateral.shape[1:3]
            x = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="nearest").permute(0, 2, 3, 1)
            x = block(torch.cat([x, lateral], dim=-1))
            laterals.append(x)
        levels = [laterals.pop()]
        for downsample, block in zip(self.downsamples, self.bottom_up, strict=True):
            levels.append(block(torch.cat([downsample(levels[-1]), laterals.pop()], dim=-1)))
        return tuple(y.permute(0, 3, 1, 2) for y in levels)


@MODELS.register_module()
class MambaYOLODetector(SingleStageDetector):
    """mmdet's one-stage detector with Mamba YOLO's names: official weights are renamed while they are loaded.

    The head's widths are the neck's where its config says none. It is in mmengine's root registry; arguments as of
    `SingleStageDetector`.
    """

    def __init__(self, backbone: dict, neck: dict, bbox_head: dict, **kwargs: Any):
        if bbox_head.get("in_channels") is None:
            bbox_head = {**bbox_head, "in_channels": neck["in_channels"]}
        super().__init__(backbone, neck, bbox_head, **kwargs)
        self._register_load_state_dict_pre_hook(self.convert_on_load)

    def convert_on_load(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Rename, in place, the official weights of neck and head, and hand the backbone its own; ours stay.

        Args:
            state_dict: All weights.
            prefix: Of this detector's names in them.
        """
        given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
        if not any(_OFFICIAL.fullmatch(name) for name in given):
            return
        for name in given:
            del state_dict[prefix + name]
        given = {name: value for name, value in given.items() if name.removeprefix("model.") != _FIXED}
        weights = rename(given, _RENAMES)
        behind = {name: value for name, value in weights.items() if not name.startswith("backbone.")}
        weights = {name: value for name, value in weights.items() if name not in behind} | rename(behind, _NECK_RENAMES)
        own = self.state_dict()
        reshape_like(weights, own, but=lambda name: name.startswith("backbone."), stacked=(".x_proj.weight",))
        state_dict.update({prefix + name: value for name, value in weights.items()})


class BoxesAndScores(nn.Module):
    """A detector as one function, for export: images (B, 3, H, W), red first, 0 to 1, to boxes and scores.

    Boxes (B, N, 4) are left, top, right, bottom in pixels, scores (B, N, C) those of each class; N points, before any
    are left out. Height and width are multiples of 32.

    Args:
        detector: A detector whose head is a `MambaYOLOHead`.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head: Any = self.detector.bbox_head
        return head.decode(*head(self.detector.extract_feat(images)))

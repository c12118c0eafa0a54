"""FLOPs of detectors and segmentors as the papers print them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import profiling

__all__ = ["dense_outputs", "paper_flops"]

# What mmdet's counter sends through the heads of a two-stage detector.
_PROPOSALS, _MASKS = 1000, 100


def _modules(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def dense_outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The forward pass of a detector or segmentor as plain tensors, for `vssm.profiling.count`.

    The heads of a two-stage detector get 1000 proposals, its mask head 100, as in mmdet's own counter; finding and
    pooling them is left out. Auxiliary heads, which only training has, are left out too.

    Args:
        model: A model of mmdet (one- or two-stage) or mmseg (EncoderDecoder).
        x: Images (B, C, H, W).
    """
    if hasattr(model, "decode_head"):
        return [model.decode_head(model.extract_feat(x))]
    maps = model.backbone(x)
    # A neck may pass over the finest maps. They are computed all the same, and a trace would leave them out.
    unread = list(maps[: getattr(getattr(model, "neck", None), "start_level", 0)])
    maps = model.neck(maps) if model.with_neck else maps
    if not hasattr(model, "rpn_head"):
        return [y for level in model.bbox_head(maps) for y in level] + unread
    outputs = [y for level in model.rpn_head(maps) for y in level] + unread
    for number, extractors, heads in (
        (_PROPOSALS, model.roi_head.bbox_roi_extractor, model.roi_head.bbox_head),
        (_MASKS, getattr(model.roi_head, "mask_roi_extractor", None), getattr(model.roi_head, "mask_head", None)),
    ):
        if heads is None:  # a detector of boxes without masks
            continue
        for extractor, head in zip(_modules(extractors), _modules(heads), strict=True):
            size = extractor.roi_layers[0].output_size
            regions = x.new_zeros(number, extractor.out_channels, *size)
            # What is pooled from the maps hands a gradient on to them.
            y = head(regions.requires_grad_(torch.is_grad_enabled()))
            outputs += y if isinstance(y, tuple) else [y]
    return outputs


def paper_flops(model: nn.Module, input_size: Sequence[int]) -> int:
    """Count a whole detector or segmentor as `vssm.profiling.paper_flops` counts a classifier, see `dense_outputs`.

    Args:
        model: a model of mmdet (one- or two-stage) or mmseg (EncoderDecoder).
        input_size: (C, H, W); the papers take (3, 800, 1280) for COCO and (3, 512, 2048) for ADE20K.

    Returns:
        The count; divide by 1e9 for the GFLOPs of a table.

    Raises:
        MissingExtraError: fvcore is not installed (the extra [profile]).
    """
    return profiling.count(model, input_size, forward=dense_outputs).flops

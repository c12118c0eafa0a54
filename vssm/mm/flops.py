"""FLOPs of detectors and segmentors as the papers print them."""

from collections.abc import Sequence

from torch import Tensor, nn

from .. import profiling

# What mmdet's counter sends through the heads of a two-stage detector.
_PROPOSALS, _MASKS = 1000, 100


def _modules(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]


class _Counted(nn.Module):
    """The forward pass of a detector or segmentor as plain tensors, without non-maximum suppression."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        model = self.model
        maps = model.extract_feat(x)
        if hasattr(model, "decode_head"):
            return [model.decode_head(maps)]
        if not hasattr(model, "rpn_head"):
            return [y for level in model.bbox_head(maps) for y in level]
        outputs = [y for level in model.rpn_head(maps) for y in level]
        for number, extractors, heads in (
            (_PROPOSALS, model.roi_head.bbox_roi_extractor, model.roi_head.bbox_head),
            (_MASKS, model.roi_head.mask_roi_extractor, model.roi_head.mask_head),
        ):
            for extractor, head in zip(_modules(extractors), _modules(heads), strict=True):
                size = extractor.roi_layers[0].output_size
                y = head(x.new_zeros(number, extractor.out_channels, *size))
                outputs += y if isinstance(y, tuple) else [y]
        return outputs


def paper_flops(model: nn.Module, input_size: Sequence[int]) -> int:
    """Count a whole detector or segmentor as `vssm.profiling.paper_flops` counts a classifier.

    The heads of a two-stage detector get 1000 proposals, its mask head 100, as in mmdet's own counter; finding and
    pooling them counts as nothing. Auxiliary heads, which only training has, are left out.

    Args:
        model: a model of mmdet (one- or two-stage) or mmseg (EncoderDecoder) on a `VSSMBackbone`.
        input_size: (C, H, W); the papers take (3, 800, 1280) for COCO and (3, 512, 2048) for ADE20K.

    Returns:
        The count; divide by 1e9 for the GFLOPs of a table.

    Raises:
        MissingExtraError: fvcore is not installed (the extra [profile]).
    """
    uncounted = getattr(model.backbone.model.model, "uncounted_operators", ())
    return profiling.paper_flops(_Counted(model), input_size, uncounted=uncounted)

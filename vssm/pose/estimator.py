"""Top-down pose estimation: one convolution on the first map of a timm model gives a heatmap for each keypoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..checkpoint import CheckpointError, about, load_weights, read_checkpoint, unwrap_state_dict
from ..engine.checks import register_check
from ..engine.config import ConfigError
from ..models.create import ModelError
from ..models.dense import convert_features, create_features
from .codec import HeatmapCodec, flip_back

__all__ = ["PoseEstimator"]


@MODELS.register_module()
class PoseEstimator(BaseModel):
    """Heatmaps of keypoints in crops of boxes, as in "Simple Baselines for Human Pose Estimation" (arXiv 1804.06208).

    The net is made for the branch of the highest resolution, without the parts that only others need, so for HRVMamba
    it is the official backbone. The loss is the mean square of what the heatmaps are off, keypoints without a label
    left out. Shapes: B crops, K keypoints, H x W the crop, h x w the map.

    Args:
        model: Arguments of ``timm.create_model``: ``dict(name="hrvmamba_small", drop_path_rate=0.1, ...)``.
            ``pretrained`` may also be the path of a classifier or of an official pose estimator with this net.
        keypoints: K.
        size: (H, W) of the crops.
        sigma: Deviation of the Gaussians in pixels of the heatmaps.
        out_index: Whose map is taken, counted from 0; its stride decides on h and w.
        flip_pairs: Keypoints that change places in a mirror.
        flip_test: Predict by the mean of the heatmaps of a crop and of its mirror image.
        data_preprocessor: See mmengine's BaseModel; the default moves tensors to the model's device.

    Raises:
        ModelError: The model is unknown, or has no feature maps.
        CheckpointError: The weights are missing, damaged, or not this model's.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        keypoints: int = 17,
        size: Sequence[int] = (256, 192),
        sigma: float = 2.0,
        out_index: int = 0,
        flip_pairs: Sequence[Sequence[int]] = (),
        flip_test: bool = True,
        data_preprocessor: Mapping[str, Any] | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor)
        options = dict(model)
        if "name" not in options:
            raise ModelError("model.model lacks 'name', the name of a timm model.")
        name, pretrained = options.pop("name"), options.pop("pretrained", False)
        self.backbone = create_features(name, pretrained is True, False, out_indices=(out_index,), **options)
        self.keypoints = keypoints
        self.codec = HeatmapCodec(size, self.backbone.feature_info.reduction()[0], sigma)
        self.flip_pairs = tuple(map(tuple, flip_pairs))
        self.flip_test = flip_test
        self.head = nn.Conv2d(self.backbone.feature_info.channels()[0], keypoints, 1)
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.zeros_(self.head.bias)
        if isinstance(pretrained, str):
            self.load_pretrained(pretrained)

    def init_weights(self) -> None:
        """Leave the net as timm made or loaded it."""
        self._is_init = True

    def load_pretrained(self, path: str) -> None:
        """Load the net of a checkpoint of a classifier or of a pose estimator, not its head.

        Raises:
            CheckpointError: The file is missing, damaged, or does not fit.
        """
        try:
            weights = unwrap_state_dict(read_checkpoint(path))
            inner = {
                key.removeprefix("backbone."): value for key, value in weights.items() if key.startswith("backbone.")
            }
            load_weights(self.backbone, convert_features(inner or weights, self.backbone))
        except ValueError as error:
            raise CheckpointError(f"The net of the pose estimator cannot be loaded. {about(path, error)}") from error

    def convert_on_load(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Rename, in place, the weights of an official pose estimator; ours stay as they are."""
        start = f"{prefix}backbone."
        given = {name[len(start) :]: value for name, value in state_dict.items() if name.startswith(start)}
        if not given or any(name.startswith("model.") for name in given):
            return
        self._check_class(given)
        for name in given:
            del state_dict[start + name]
        state_dict.update({start + name: value for name, value in convert_features(given, self.backbone).items()})
        for kind in ("weight", "bias"):
            if f"{prefix}head.final_layer.{kind}" in state_dict:
                state_dict[f"{prefix}head.{kind}"] = state_dict.pop(f"{prefix}head.final_layer.{kind}")

    def _check_class(self, given: Mapping[str, Tensor]) -> None:
        """Of HRVMamba's tiny size both classes are about: say which one a file is of."""
        gated = any(".op.se." in name for name in given)
        own = any(".mixer.se." in name for name in self.backbone.state_dict())
        if any(".op." in name for name in given) and gated != own:
            want = "se=True, pos_conv=True" if gated else "se=False, pos_conv=False"
            raise CheckpointError(
                f"the checkpoint's net is {'with' if gated else 'without'} squeeze-and-excitation, the model's is not; "
                f"give model.model the options {want}"
            )

    def forward(
        self,
        inputs: Tensor,
        heatmaps: Tensor | None = None,
        weights: Tensor | None = None,
        mode: str = "tensor",
        **meta: Any,
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Any]]:
        """Run the model.

        Args:
            inputs: Normalised crops (B, 3, H, W).
            heatmaps: Targets (B, K, h, w); needed by ``"loss"``.
            weights: Of the keypoints (B, K); needed by ``"loss"``.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.
            meta: What else the data set says of each crop; ``"predict"`` passes it along.

        Returns:
            ``"tensor"``: heatmaps (B, K, h, w). ``"loss"``: ``{"loss": scalar}``. ``"predict"``: for each crop a dict
            with ``points`` (K, 2) of the crop, ``scores`` (K,) and what ``meta`` has of it.

        Raises:
            ValueError: ``mode`` is none of the three, or targets are missing.
        """
        if mode == "tensor":
            return self.head(self.backbone(inputs)[0])
        if mode == "loss":
            if heatmaps is None or weights is None:
                raise ValueError("mode 'loss' needs heatmaps and weights.")
            found = self.head(self.backbone(inputs)[0]).float()
            factor = weights[..., None, None]
            return {"loss": F.mse_loss(found * factor, heatmaps * factor)}
        if mode == "predict":
            found = self.head(self.backbone(inputs)[0]).float()
            if self.flip_test:
                mirrored = self.head(self.backbone(inputs.flip(-1))[0]).float()
                found = (found + flip_back(mirrored, self.flip_pairs)) / 2
            points, scores = self.codec.decode(found)
            return [
                {"points": points[i], "scores": scores[i], **{key: value[i] for key, value in meta.items()}}
                for i in range(len(inputs))
            ]
        raise ValueError(f"mode must be 'tensor', 'loss' or 'predict', not '{mode}'.")


@register_check
def _check_keypoints(model: nn.Module, dataset: Any) -> None:
    """Refuse an estimator with other keypoints, crops or heatmaps than its data."""
    codec = getattr(dataset, "codec", None)
    if not isinstance(model, PoseEstimator) or codec is None:
        return
    names = dataset.metainfo["keypoints"]
    if len(names) != model.keypoints:
        raise ConfigError(
            f"The data has {len(names)} keypoints, but the model {model.keypoints}: set model.keypoints={len(names)}."
        )
    for what in ("size", "stride", "sigma"):
        theirs, ours = getattr(codec, what), getattr(model.codec, what)
        if theirs != ours:
            raise ConfigError(f"The {what} of the data's heatmaps is {theirs}, but the model's {ours}.")

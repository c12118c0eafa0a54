"""Any timm model as the backbone of mmdet's detectors and mmseg's segmentors."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from ..checkpoint import CheckpointError, about, load_weights, read_checkpoint, unwrap_state_dict
from ..engine.config import ConfigError
from ..models import DenseMaps, family_of
from ..models.adapter import ADAPTER_STRIDES, ViTAdapter
from ..models.create import ModelError
from ..models.dense import (
    ADAPTER,
    OUT_NORM,
    convert_features,
    create_features,
    default_indices,
    dense_maps_of,
    move_pyramid,
    split_backbone,
)


@MODELS.register_module()
class VSSMBackbone(BaseModule):
    """A timm model that gives feature maps: ``dict(type="VSSMBackbone", model_name="vmamba_tiny_s1l8", ...)``.

    It is in mmengine's root registry, which mmdet's and mmseg's registries search too. Shapes: B images, C channels,
    H x W pixels.

    Args:
        model_name: A model of this package or of timm's that has ``forward_intermediates``.
        pretrained: False for random weights; True for the published ones; or the path of a checkpoint: a classifier,
            or a whole detector or segmentor with a backbone of the same model, official or of this package.
        out_indices: Stages whose maps are wanted, counted from 0; of plain nets, blocks. None: the first four stages,
            or the last block of each quarter of a plain net.
        out_norm: Put on the maps the norms of the official detectors and segmentors of the model's family, see
            :class:`vssm.models.DenseMaps`. Most put a LayerNorm on each, ``outnorm0`` and so on, which
            starts afresh after loading a classifier. The maps of models of no family stay as they are. False: no norm.
        adapter: Options of a :class:`~vssm.models.adapter.ViTAdapter` beside a plain net, at best none: ``dict()``. It
            gives maps of the strides 4, 8, 16 and 32 and norms of its own, starts afresh after loading a classifier,
            and exchanges with the net around the parts that end in ``out_indices``. None: no adapter.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        frozen_stages: Keep the stem and the first ``frozen_stages`` stages as they are: no gradients, no dropping of
            paths, statistics of norms as loaded. 0 freezes the stem, -1 nothing. The layer between two stages belongs
            to the later one.
        norm_eval: Keep the statistics of all BatchNorms as loaded; their affine parameters still train.
        with_cp: Gradient checkpointing: less memory for activations, which are computed once more in the backward.
        in_chans: Channels of the images.
        init_cfg: As mmdet writes ``pretrained``: ``dict(type="Pretrained", checkpoint=PATH)``.
        **model_kwargs: Further arguments of ``timm.create_model``.

    Attributes:
        channels: Width of each map.
        strides: Stride of each map.
        feature_info: timm's records of all stages, see ``timm.models.FeatureInfo``.

    Raises:
        ModelError: The model or an option of it is unknown, or it has no such stages or no such feature maps.
        CheckpointError: The weights are missing, damaged, or not this model's: it never goes on with random ones.
        ConfigError: ``init_cfg`` or ``frozen_stages`` cannot be used.
    """

    def __init__(
        self,
        model_name: str,
        pretrained: bool | str = False,
        out_indices: Sequence[int] | None = None,
        out_norm: bool = True,
        adapter: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        in_chans: int = 3,
        init_cfg: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ):
        super().__init__()
        if init_cfg is not None:
            pretrained = _checkpoint_of(init_cfg, pretrained)
        self.model_name = model_name
        self.norm_eval = norm_eval
        options: dict[str, Any] = dict(model_kwargs, in_chans=in_chans)
        out_indices = tuple(default_indices(model_name, **options) if out_indices is None else out_indices)
        out_norm = out_norm and adapter is None
        if drop_path_rate:
            # Not every model of timm takes this argument.
            options["drop_path_rate"] = drop_path_rate
        try:
            self.model = create_features(model_name, pretrained is True, out_norm, out_indices=out_indices, **options)
        except (AssertionError, IndexError) as error:
            raise ModelError(
                f"Model '{model_name}' has no feature maps {out_indices}: {str(error) or 'too many stages'}."
            ) from error
        self.feature_info = self.model.feature_info
        self.channels: list[int] = self.feature_info.channels()
        self.strides: list[int] = self.feature_info.reduction()
        self.out_indices = tuple(self.feature_info.out_indices)
        self._out_norms: list[str] = []
        kind = dense_maps_of(self.model.model) if out_norm else DenseMaps.AS_THEY_ARE
        if kind in (DenseMaps.NEW_NORMS, DenseMaps.NEW_AND_OWN_NORMS):
            normed = self.out_indices if kind is DenseMaps.NEW_NORMS else self.out_indices[:-1]
            self._out_norms = [f"{OUT_NORM}{index}" for index in normed]
            for name, width in zip(self._out_norms, self.channels, strict=False):
                self.add_module(name, LayerNorm2d(width, eps=family_of(self.model.model).dense_norm_eps))
        self.adapter: ViTAdapter | None = None
        if adapter is not None:
            self.adapter = self._adapter(dict(adapter), in_chans, drop_path_rate)
            self.channels, self.strides = [self.channels[-1]] * len(ADAPTER_STRIDES), list(ADAPTER_STRIDES)
        self._register_load_state_dict_pre_hook(self.convert_on_load)
        if isinstance(pretrained, str):
            self.load_pretrained(pretrained)
        if with_cp:
            self.model.model.set_grad_checkpointing(True)
        self._frozen = self._freeze(frozen_stages)
        self.train(self.training)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, in_chans, H, W) to one map (B, C, H / stride, W / stride) for each of ``strides``."""
        if self.adapter is not None:
            return tuple(self.adapter(self.model.model, x))
        maps = self.model(x)
        for i, name in enumerate(self._out_norms):
            maps[i] = getattr(self, name)(maps[i])
        return tuple(maps)

    def train(self, mode: bool = True) -> "VSSMBackbone":
        """Set the mode of all parts but the frozen ones, which stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Leave everything as timm made or loaded it.

        mmengine's own method would call ``init_weights`` of the model once more, over the weights just loaded.
        """
        self._is_init = True

    def _adapter(self, options: dict[str, Any], in_chans: int, drop_path_rate: float) -> ViTAdapter:
        options = dict(last_blocks=self.out_indices, in_chans=in_chans, drop_path_rate=drop_path_rate) | options
        try:
            return ViTAdapter(self.model.model, **options)
        except (TypeError, ValueError) as error:
            raise ModelError(f"Model '{self.model_name}' cannot have this adapter: {error}.") from error

    def load_pretrained(self, path: str) -> None:
        """Load a checkpoint's backbone, see ``pretrained``.

        A classifier has no values for the norms on the maps, nor for an adapter.

        Raises:
            CheckpointError: The file is missing, damaged, or does not fit exactly.
        """
        try:
            weights = self.convert_state_dict(unwrap_state_dict(read_checkpoint(path)))
            new = [name for name in self._out_norms if not any(key.startswith(name + ".") for key in weights)]
            if new and len(new) < len(self._out_norms):
                raise CheckpointError(f"the checkpoint lacks {', '.join(new)}")
            parts = [f"{name}." for name in new]
            if not any(key.startswith(ADAPTER) for key in weights):
                parts.append(ADAPTER)
            load_weights(self, weights, [key for key in self.state_dict() if key.startswith(tuple(parts))])
        except CheckpointError as error:
            text = about(path, error)
            raise CheckpointError(f"Backbone '{self.model_name}' cannot be loaded. {text}") from error

    def convert_state_dict(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the weights of an official backbone or classifier the names that they have in this module.

        Args:
            weights: Names relative to the backbone. Those of this module are returned as they are.

        Returns:
            The weights, without those that only a classifier has.

        Raises:
            ValueError: They are not those of this model; the message names what is missing, unexpected or misshapen.
        """
        parts = split_backbone(weights)
        if parts.adapter and self.adapter is None:
            raise CheckpointError("the checkpoint's backbone has an adapter; give this one adapter=dict()")
        net = {f"model.{name}": value for name, value in convert_features(parts.net, self.model).items()}
        adapter = {ADAPTER + name: value for name, value in parts.adapter.items()}
        return net | (parts.norms if self._out_norms else {}) | adapter

    def _freeze(self, frozen_stages: int) -> list[nn.Module]:
        """Stop gradients; return the largest modules that no longer have any parameter to train."""
        if frozen_stages < 0:
            return []
        stages = len(self.model.model.feature_info)
        if frozen_stages > stages:
            raise ConfigError(
                f"frozen_stages must be from -1 to {stages}, the stages of '{self.model_name}', not {frozen_stages}."
            )
        model = self.model.model
        # timm's own division: the stem is number 0, the stages follow.
        numbers = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=True), reverse=True)
        frozen = {name for name, number in numbers.items() if number <= frozen_stages}
        for name, parameter in model.named_parameters():
            if name in frozen:
                parameter.requires_grad = False

        def largest(module: nn.Module, prefix: str) -> list[nn.Module]:
            names = [prefix + name for name, _ in module.named_parameters()]
            if names and frozen.issuperset(names):
                return [module]
            return [found for name, child in module.named_children() for found in largest(child, f"{prefix}{name}.")]

        return largest(model, "")

    def convert_on_load(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Rename, in place, the weights of this module in those of whatever holds it, unless they have its names.

        ``load_state_dict`` calls it first, of whatever model, so official detectors load into ours. What an official
        backbone holds of the neck becomes the neck's where all weights are given: the tools and
        :func:`convert_detector_checkpoint` give them, ``load_state_dict`` does not.

        Args:
            state_dict: All weights.
            prefix: Of this module's names in them.

        Raises:
            ValueError: See :meth:`convert_state_dict`.
        """
        moved = move_pyramid(state_dict)
        state_dict.clear()
        state_dict.update(moved)
        given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
        if not given or any(name.startswith("model.model.") for name in given):
            return
        converted = self.convert_state_dict(given)
        for name in given:
            del state_dict[prefix + name]
        state_dict.update({prefix + name: value for name, value in converted.items()})


def _checkpoint_of(init_cfg: Mapping[str, Any], pretrained: bool | str) -> str:
    if init_cfg.get("type") != "Pretrained" or not init_cfg.get("checkpoint") or set(init_cfg) - {"type", "checkpoint"}:
        raise ConfigError(
            "VSSMBackbone's init_cfg can only be dict(type='Pretrained', checkpoint=PATH); random weights are timm's "
            f"own, not {dict(init_cfg)}."
        )
    if pretrained:
        raise ConfigError("VSSMBackbone takes pretrained or init_cfg, not both.")
    return str(init_cfg["checkpoint"])


def convert_detector_checkpoint(checkpoint: Mapping[str, Any], detector: nn.Module) -> dict[str, Tensor]:
    """Give an official detector's or segmentor's weights the names that they have in one of this package.

    Backbones are renamed by their families' rules, and so are heads of this package. Necks and heads of mmdet's and
    mmseg's own keep their names.

    Args:
        checkpoint: As it was read: nested under ``state_dict`` or not.
        detector: A model that holds a :class:`VSSMBackbone`.

    Returns:
        A state dict for ``detector``.

    Raises:
        ValueError: The backbone's weights are not those of the detector's backbone.
    """
    weights = unwrap_state_dict(checkpoint, whole=True)
    for path, module in detector.named_modules():
        if hasattr(module, "convert_on_load"):
            module.convert_on_load(weights, path + "." if path else "")
    return weights


__all__ = ["VSSMBackbone", "convert_detector_checkpoint"]

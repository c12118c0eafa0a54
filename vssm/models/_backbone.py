"""The common parts of the families' models: timm's surface, without the way from image to logits."""

import functools
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor

from ..checkpoint import StateDictError, mismatch_advice
from ..layers import ClassifierHead, split_batch

__all__ = [
    "Backbone",
    "Stage",
    "StagedBackbone",
    "drop_path_rates",
    "init_weights",
    "renamed_arguments",
    "stage_dims",
    "stage_info",
]


def renamed_arguments(**new_names: str) -> Callable[[type], type]:
    """A decorator of a model class: its constructor goes on taking arguments under the names that they had.

    Configs and saved models hold them. Where an argument comes under both names, the old one wins, for the registered
    functions give their own values under the new name.

    Args:
        new_names: today's name by the old one.
    """

    def decorate(cls: Any) -> Any:
        init = cls.__init__

        @functools.wraps(init)
        def wrapped(self, *args, **kwargs):
            for old, new in new_names.items():
                if old in kwargs:
                    kwargs[new] = kwargs.pop(old)
            init(self, *args, **kwargs)

        cls.__init__ = wrapped
        return cls

    return decorate


def stage_dims(dims: Union[int, Sequence[int]], depths: Sequence[int]) -> Tuple[int, ...]:
    """The width of each stage; a single number is the first one's, doubled by every further stage.

    Raises:
        ValueError: not one width for each of `depths`.
    """
    if isinstance(dims, int):
        return tuple(dims * 2**i for i in range(len(depths)))
    if len(dims) != len(depths):
        raise ValueError(f"dims and depths must have one number a stage, got {tuple(dims)} and {tuple(depths)}")
    return tuple(dims)


def drop_path_rates(rate: float, depths: Sequence[int]) -> List[List[float]]:
    """Rates of stochastic depth for the blocks of each stage, rising linearly from 0 to `rate` over all blocks."""
    rates = iter(torch.linspace(0, rate, sum(depths), device="cpu", dtype=torch.float32).tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


def stage_info(dims: Sequence[int], reduction: int = 4) -> List[Dict[str, Any]]:
    """timm's `feature_info` of a model whose stages have these widths; the first stride is doubled by every stage."""
    return [dict(num_chs=d, reduction=reduction * 2**i, module=f"stages.{i}") for i, d in enumerate(dims)]


def init_weights(network: nn.Module) -> None:
    """Linear layers truncated-normal; convolutions and norms as PyTorch; mixers by their own `init_weights`.

    PyTorch's layers start in their constructors; when called again, as after `to_empty`, this starts those as well.
    """
    again = getattr(network, "_was_started", False)
    network._was_started = True  # type: ignore[assignment]
    if next(network.parameters()).is_meta:  # no values to set, and each call there takes longer than with values
        return

    def init(module: nn.Module) -> None:
        if again and callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif module is not network and callable(start := getattr(module, "init_weights", None)):
            start()  # after its own linear layers

    network.apply(init)


class Stage(nn.Module):
    """Downsampling (none in the first stage), then blocks, then a norm if given. (B, H, W, C) to (B, H', W', C').

    The downsampling stands first, so that a stage's output is the feature map of its stride.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: Optional[nn.Module] = None):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            pieces = split_batch(x, self)
            if len(pieces) > 1:
                return torch.cat([self.forward_blocks(self.downsample(piece)) for piece in pieces])
        return self.forward_blocks(self.downsample(x))

    def forward_blocks(self, x: Tensor) -> Tensor:
        """Applies everything after the downsampling: (B, H', W', C') to the same."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


class Backbone(nn.Module):
    """A classifier with timm's surface; a family's class adds the layers and the way of the data through them.

    That is `forward_features`, `forward_head` and `forward`. Its constructor ends in `init_weights`. It has `head`,
    timm's `ClassifierHead`, or its own `get_classifier` and `reset_classifier`.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        drop_rate: dropout before the classifier.
    """

    if TYPE_CHECKING:  # TorchScript would take these for the types of what it compiles
        head: Any
        num_features: int
        pretrained_cfg: Dict[str, Any]

    # Names of parameters of the state space, which weight decay spares; norms and biases are exempt by their shape.
    state_space_parameters: Tuple[str, ...] = ("A_logs", "Ds", "dt_projs_bias")
    # Top-level modules that only the classifier needs.
    classifier_parts: Tuple[str, ...] = ("head",)
    # Parts that `prune_intermediate_layers` took away; checkpoints may hold them all the same.
    pruned_parts: Tuple[str, ...] = ()
    # Attributes of the class that a scripted model has, too.
    __constants__ = ["state_space_parameters"]

    def __init__(self, in_chans: int, num_classes: int, drop_rate: float):
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.output_fmt = "NHWC"
        self.feature_info: List[Dict[str, Any]] = []

    @torch.jit.ignore
    def init_weights(self) -> None:
        """See the function of this name."""
        init_weights(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights in this model's own names, as any module does.

        Raises:
            StateDictError: they are this model's under other names, nested, or of other classes; it says what to call.
            RuntimeError: they are not this model's.
        """
        try:
            result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            advice = mismatch_advice(self, state_dict)
            if not advice:
                raise
            raise StateDictError(advice) from error
        if result.missing_keys and len(result.missing_keys) >= len(dict(self.named_parameters())):
            advice = mismatch_advice(self, state_dict)  # strict=False, and nothing was loaded
            if advice:
                raise StateDictError(advice)
        return result

    @torch.jit.ignore
    def set_pruning(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to prune tokens; see `PlainBackbone.set_pruning`."""
        raise ValueError(
            f"{type(self).__name__} cannot prune tokens: its downsampling needs a map without gaps; plain nets such as "
            "Vim and PlainMamba can"
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set:
        """The state-space parameters, as is usual in the literature; the official recipes decay some of them."""
        return {n for n, _ in self.named_parameters() if n.rsplit(".", 1)[-1] in self.state_space_parameters}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        like = next(self.parameters())
        self.head.to(device=like.device, dtype=like.dtype)


class StagedBackbone(Backbone):
    """A backbone of stages over channels-last maps (B, H, W, C).

    Its class sets `stem`, images (B, in_chans, H, W) to a map, `stages`, a Sequential of `Stage`, `norm`, of the last
    map, `head`, and `feature_info`, see `stage_info`.
    """

    if TYPE_CHECKING:
        stem: nn.Module
        stages: Union[nn.Sequential, nn.ModuleList]
        norm: nn.Module

    # Whether `forward_features` applies the last norm; where it does not, the norm belongs to the head.
    normed_features: bool = True
    __constants__ = [*Backbone.__constants__, "normed_features"]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return dict(
            stem=r"^stem",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),  # with the stage's last block
                (r"^norm", (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        stage: Any
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[Tensor], Tuple[Tensor, List[Tensor]]]:
        """Stage outputs, with or without the final features.

        Args:
            x: images (B, in_chans, H, W).
            indices: the last n stages if an int, all if None, else those listed.
            norm: apply the final norm to the last stage's map.
            stop_early: skip the stages after the last one wanted.
            output_fmt: "NCHW" or "NHWC" for the intermediates.
            intermediates_only: return only the intermediates.

        Raises:
            ValueError: another `output_fmt`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be NCHW or NHWC, got {output_fmt}")
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        last = len(self.stages) - 1
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice a Sequential
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take_indices:
                y = self.norm(x) if norm and i == last else x
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return intermediates
        if len(stages) == len(self.stages) and self.normed_features:
            x = self.norm(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop the stages after the last one wanted, and norm and head if asked to; a new head takes what is left."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        pruned = max_index < len(self.stages) - 1
        self.note_pruned(max_index + 1, prune_norm or pruned, prune_head or pruned)
        self.stages = self.stages[: max_index + 1]
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if pruned:
            self.num_features = self.feature_info[max_index]["num_chs"]
            if isinstance(self.head, ClassifierHead):
                self.head_hidden_size = self.head.in_features = self.head.num_features = self.num_features
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take_indices

    def note_pruned(self, num_stages: int, norm: bool, head: bool) -> None:
        """Set `pruned_parts` before the stages from `num_stages` on, the last norm or the head are taken away."""
        parts = [f"stages.{i}" for i in range(num_stages, len(self.stages))]
        parts += ["norm"] if norm else []
        parts += self.classifier_parts if head else []
        self.pruned_parts = tuple(parts)

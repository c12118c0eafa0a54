"""What the families' models do in the same way: stages, features, classifier, timm's surface."""

from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from timm.layers import ClassifierHead, trunc_normal_
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor

__all__ = ["Backbone", "Stage", "init_weights"]


def init_weights(network: nn.Module) -> None:
    """Linear layers truncated-normal; convolutions and norms as PyTorch; mixers by their own `init_weights`."""
    if next(network.parameters()).is_meta:  # no values to set, and each call there takes longer than with values
        return

    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif module is not network and hasattr(module, "init_weights"):  # after its own linear layers
            module.init_weights()

    network.apply(init)


class Stage(nn.Module):
    """Downsampling (none in the first stage), then blocks, then a norm if given. (B, H, W, C) to (B, H', W', C').

    The downsampling stands first, so that a stage's output is the feature map of its stride.
    """

    def __init__(self, downsample: nn.Module, blocks: List[nn.Module], norm: Optional[nn.Module] = None):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_blocks(self.downsample(x))

    def forward_blocks(self, x: Tensor) -> Tensor:
        """What follows the downsampling, (B, H', W', C') to the same."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.norm(x)


class Backbone(nn.Module):
    """Stem, stages, norm and head over channels-last maps, with the methods that timm asks of a model.

    A family's class sets `stem`, images (B, in_chans, H, W) to a map (B, H', W', C), and calls `build_stages`,
    `build_head` and, at the end, `init_weights`.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier; 0 for none.
        drop_rate: dropout before the classifier.
    """

    # Names of parameters of the state space, which weight decay spares; norms and biases are exempt by their shape.
    state_space_parameters: Tuple[str, ...] = ("A_logs", "Ds", "dt_projs_bias")
    # Top-level modules that only the classifier needs.
    classifier_parts: Tuple[str, ...] = ("head",)
    # Parts that `prune_intermediate_layers` took away; checkpoints may hold them all the same.
    pruned_parts: Tuple[str, ...] = ()

    def __init__(self, in_chans: int, num_classes: int, drop_rate: float):
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.output_fmt = "NHWC"
        self.feature_info: List[Dict[str, object]] = []

    def build_stages(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        drop_path_rate: float,
        block: Callable[[int, int, float], nn.Module],
        downsample: Callable[[int, int], nn.Module],
        reduction: int = 4,
        norm: Optional[Callable[[int, int], nn.Module]] = None,
        stage: Callable[..., nn.Module] = Stage,
    ) -> None:
        """Set `stages` and `feature_info`.

        Args:
            dims: width of each stage.
            depths: blocks of each stage.
            drop_path_rate: stochastic depth of the last block, rising linearly from 0 over all blocks.
            block: makes a block from (stage, width, rate of its stochastic depth).
            downsample: makes the layer between two stages from (width before, width after).
            reduction: stride of the first stage; doubled by every further one.
            norm: makes the norm at the end of a stage from (stage, width); none when None.
            stage: makes a stage from its downsampling, its blocks and its norm or None.
        """
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            down = nn.Identity() if i == 0 else downsample(dims[i - 1], dim)
            blocks = [block(i, dim, next(rates)) for _ in range(depth)]
            stages.append(stage(down, blocks, None if norm is None else norm(i, dim)))
            self.feature_info.append(dict(num_chs=dim, reduction=reduction * 2**i, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)

    def build_head(self, num_features: int, global_pool: str, device=None, dtype=None) -> None:
        """Set `norm`, a LayerNorm over the last map, and `head`, pooling and a linear classifier."""
        dd = {"device": device, "dtype": dtype}
        self.num_features = self.head_hidden_size = num_features
        self.norm = nn.LayerNorm(num_features, **dd)
        self.head = ClassifierHead(
            num_features,
            self.num_classes,
            pool_type=global_pool,
            drop_rate=self.drop_rate,
            input_fmt=self.output_fmt,
            **dd,
        )

    @torch.jit.ignore
    def init_weights(self) -> None:
        """See the function of this name."""
        init_weights(self)

    @torch.jit.ignore
    def no_weight_decay(self) -> set:
        """The state-space parameters, as is usual in the literature; the official recipes decay some of them."""
        return {n for n, _ in self.named_parameters() if n.rsplit(".", 1)[-1] in self.state_space_parameters}

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
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        like = next(self.parameters())
        self.head.to(device=like.device, dtype=like.dtype)

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
        return self.finish_features(x) if len(stages) == len(self.stages) else x, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop the stages after the last one wanted, and with it the norm and the head if asked to."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        pruned = max_index < len(self.stages) - 1
        self.note_pruned(max_index + 1, prune_norm or pruned, prune_head or pruned)
        self.stages = self.stages[: max_index + 1]
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take_indices

    def note_pruned(self, num_stages: int, norm: bool, head: bool) -> None:
        """Set `pruned_parts` before the stages from `num_stages` on, the last norm or the head are taken away."""
        parts = [f"stages.{i}" for i in range(num_stages, len(self.stages))]
        parts += ["norm"] if norm else []
        parts += self.classifier_parts if head else []
        self.pruned_parts = tuple(parts)

    def finish_features(self, x: Tensor) -> Tensor:
        """What `forward_features` does to the last map; a family whose norm belongs to its head leaves it as it is."""
        return self.norm(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to the last map (B, H', W', C), normalised unless the family's head does that."""
        return self.finish_features(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

"""The trainer that nnU-Net's own commands use, for any network of this package."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import timm
import torch
from timm.optim import param_groups_weight_decay

from ..._errors import did_you_mean
from ..._optional import require
from ..unet import DEFAULT_ENCODERS, UNet, create_unet
from ..volume_encoders import VOLUME_ENCODERS
from .network import SupervisedUNet

require("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnunet")

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

__all__ = ["VSSMTrainer", "trainer_named"]


class VSSMTrainer(nnUNetTrainer):
    """Trains an encoder of this package, or of timm, under one of its decoders, for images and for volumes.

    nnU-Net plans, augments, predicts and evaluates as ever. Different are the network, the optimiser (AdamW in place of
    SGD, without decay of norms, biases and state-space parameters) and the scales of deep supervision, which are those
    of the decoder's maps. Volumes are halved along the axes that the plans halve.

    What is to be different again stands in the class, because nnU-Net keeps a trainer's name and nothing else::

        class VSSM_mine(VSSMTrainer):
            encoder = "vmamba_small_s2l15"
            decoder = "msvm"
            settings = dict(num_epochs=300)

    Attributes:
        encoder: A name; None for ``create_unet``'s default for images or volumes.
        decoder: See :func:`~vssm.medical.create_unet`.
        encoder_options: The same.
        decoder_options: More arguments of the decoder.
        pretrained: True for the encoder's published ImageNet weights, or a file with them. Read when training begins,
            not for prediction.
        deep_supervision: A loss on each coarse map of the decoder, too.
        precision: One of :data:`~vssm.medical.nnunet.network.PRECISIONS`.
        settings: nnU-Net's own attributes of a trainer, such as ``num_epochs``, ``num_iterations_per_epoch``,
            ``initial_lr`` and ``weight_decay``.

    Raises:
        ValueError: The encoder does not fit the configuration, or nnU-Net has no such setting.
    """

    encoder: str | None = None
    decoder = "unet"
    encoder_options: Mapping[str, Any] = {}
    decoder_options: Mapping[str, Any] = {}
    pretrained: bool | str = False
    deep_supervision = True
    precision: str | None = None
    settings: Mapping[str, Any] = {}

    # nnU-Net stores the arguments by the names that it reads in this signature.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = self.deep_supervision
        self.initial_lr, self.weight_decay = 3e-4, 0.05
        for name, value in self.settings.items():
            if not hasattr(self, name):
                raise ValueError(f"nnU-Net's trainer has no setting '{name}'{did_you_mean(name, vars(self))}")
            setattr(self, name, value)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> SupervisedUNet:
        """Build the network for training and for prediction; see nnU-Net."""
        net = cls._net(configuration_manager, num_input_channels, num_output_channels)
        return SupervisedUNet(net, cls.deep_supervision, enable_deep_supervision, cls.precision)

    @classmethod
    def _net(
        cls, configuration: Any, in_chans: int, num_classes: int, pretrained: bool | str | PathLike = False
    ) -> UNet:
        dims = len(configuration.patch_size)
        encoder = cls.encoder or DEFAULT_ENCODERS[dims]
        options = dict(cls.encoder_options)
        if dims == 2 and encoder in VOLUME_ENCODERS:
            raise ValueError(
                f"'{encoder}' is an encoder of volumes, and this configuration has images: take one of timm's "
                f"registry, such as '{DEFAULT_ENCODERS[2]}', or a configuration of volumes"
            )
        if dims == 3 and encoder in VOLUME_ENCODERS and "strides" not in options:
            depths = inspect.signature(VOLUME_ENCODERS[encoder]).parameters["depths"].default
            stages = len(options.get("depths", depths))
            options["strides"] = _strides(stages, configuration.pool_op_kernel_sizes)
        return create_unet(
            cls.decoder,
            encoder,
            num_classes,
            in_chans,
            pretrained,
            encoder_options=options,
            spatial_dims=dims,
            **cls.decoder_options,
        )

    def initialize(self) -> None:
        """Build everything, as nnU-Net does, and read the pre-trained weights."""
        super().initialize()
        if self.pretrained:
            net = self._supervised().net
            trained = self._net(self.configuration_manager, net.in_chans, net.num_classes, self.pretrained)
            net.encoder.load_state_dict(trained.encoder.state_dict())

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW under nnU-Net's own schedule."""
        network = self._supervised()
        groups = param_groups_weight_decay(network, self.weight_decay, no_weight_decay_list=network.no_weight_decay())
        optimizer = torch.optim.AdamW(groups, self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Give the logits of coarse maps, or not; see nnU-Net."""
        self._supervised().deep_supervision = enabled and self.enable_deep_supervision

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's picture is made for its own networks."""

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        return [list(scale) for scale in self._supervised().scales] if self.enable_deep_supervision else None

    def _do_i_compile(self) -> bool:
        # Compiled networks have not been tried here: only where the user asks for them.
        return "nnUNet_compile" in os.environ and super()._do_i_compile()

    def _supervised(self) -> SupervisedUNet:
        """The network itself, inside of what DistributedDataParallel and torch.compile put around it."""
        network = getattr(self.network, "module", self.network)
        return getattr(network, "_orig_mod", network)


def _strides(stages: int, plan: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Steps of an encoder's stages: those of the plans, whose first is the full resolution.

    Where the plans halve less often than the encoder, for small patches, it halves all axes, and the network pads.
    """
    steps = [tuple(int(step) for step in steps) for steps in plan[1 : stages + 1]]
    return steps + [(2, 2, 2)] * (stages - len(steps))


def trainer_named(name: str) -> type[VSSMTrainer]:
    """Make the trainer of a name that nnU-Net looks for.

    Args:
        name: ``VSSM``, or ``VSSM_`` and an encoder of ``create_unet``; ``_noDeepSupervision`` may follow.

    Raises:
        AttributeError: The name is not of this form, and so another file's.
        ValueError: There is no such encoder.
    """
    match = re.fullmatch(r"VSSM(?:_(?!noDeepSupervision$)(\w+?))?(_noDeepSupervision)?", name)
    if match is None:
        raise AttributeError(f"there is no trainer '{name}' here")
    encoder = match[1]
    if encoder is not None and encoder not in VOLUME_ENCODERS and not timm.is_model(encoder):
        known = [*VOLUME_ENCODERS, *timm.list_models()]
        raise ValueError(
            f"the trainer {name} needs the encoder '{encoder}', which is unknown{did_you_mean(encoder, known)}"
        )
    attributes = {"encoder": encoder, "deep_supervision": match[2] is None, "__module__": __name__}
    return type(name, (VSSMTrainer,), attributes)

"""Masked pre-training without labels: MambaMIM (arXiv 2408.08070) over any encoder of images or volumes with stages."""

import inspect
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import timm
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from .._errors import UserError
from ..checkpoint import rename, reshape_like
from ..engine.config import ConfigError
from ..layers import mask_at, sparse_form
from ..models.create import ModelError
from ..scans import interpolate_tokens
from .encoders import create_encoder
from .hymamba_encoder import HyMambaEncoder, to_official, unwrap_official
from .light_decoder import LightDecoder, decoder_steps
from .volume_encoders import create_volume_encoder

__all__ = ["MaskedPretraining", "draw_mask", "patch_moments", "patchify"]

TOKENS = ("interpolate", "learned")
_RENAMES = (
    (r"^dense_decoder\.dec\.", "decoder.steps."),
    (r"^dense_decoder\.proj\.", "decoder.head."),
    (r"^dense_decoder\.fuse\.(\d)\.conv\.", r"decoder.fuse.\1."),
    (r"^densify_projs\.", "projections."),
    (r"^A_interpolation$", "interpolation"),
)


def draw_mask(
    batch: int, grid: Sequence[int], ratio: float, generator: torch.Generator | None = None, device: Any = None
) -> Tensor:
    """Draw which cells of the coarsest grid are seen, for each sample by itself.

    Args:
        batch: Samples B.
        grid: Size of the coarsest map.
        ratio: Share of the cells that are masked; round(cells * (1 - ratio)) stay.
        generator: Where to draw from.
        device: Of the mask.

    Returns:
        (B, 1, *grid), bool, True where it is seen.

    Raises:
        ConfigError: No cell would be seen, or none masked.
    """
    cells = prod(grid)
    keep = round(cells * (1 - ratio))
    if not 0 < keep < cells:
        raise ConfigError(
            f"A mask_ratio of {ratio} leaves {keep} of {cells} cells ({' x '.join(map(str, grid))}); some have to be "
            f"seen and some masked."
        )
    order = torch.rand(batch, cells, generator=generator, device=device).argsort(dim=1)
    visible = torch.zeros(batch, cells, dtype=torch.bool, device=device).scatter(1, order[:, :keep], True)
    return visible.view(batch, 1, *grid)


def patchify(image: Tensor, patch: Sequence[int]) -> Tensor:
    """Cut images into patches in raster order: (B, C, H, W) to (B, L, p_h p_w C); volumes alike."""
    dims = len(patch)
    for axis, side in enumerate(patch):
        image = image.unflatten(2 + 2 * axis, (-1, side))
    cells, inside = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    return image.permute(0, *cells, *inside, 1).flatten(1 + dims).flatten(1, dims)


def patch_moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch (B, L, N), by which the network's targets are normalised: (B, L, 1) each."""
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (var + 1e-6).sqrt()


@MODELS.register_module()
class MaskedPretraining(BaseModel):
    """An encoder that learns to fill in the masked patches of images or volumes. Letters: B samples, C channels.

    A share of the cells of the encoder's coarsest map is masked, for each sample by itself, and the encoder runs on
    what is left (`vssm.layers.sparse_form`). Each of its maps is filled at the masked places and goes into a light
    decoder. The loss is the mean squared error of the masked patches, each normalised by its own mean and deviation.

    Two slips of the released code can be asked for; the encoder's weights fit either way.

    Args:
        network: ``encoder``, a name as of :func:`~vssm.medical.create_unet`, and ``spatial_dims``, ``in_chans``,
            ``pretrained`` and ``encoder_options`` as there.
        mask_ratio: Share of the cells that are masked.
        decoder_dim: Width of the decoder at the coarsest map, halved at each step.
        tokens: What fills the coarsest map: "interpolate", the state space between the tokens that are seen
            (:func:`~vssm.scans.interpolate_tokens`), or "learned", one token for all places, as for the finer maps.
        mix_layout: The first slip: the interpolated tokens (L, C) are read as (C, L) without being transposed, so that
            places and channels are mixed up.
        keep_batch: The second slip: of each sample as many tokens stay in Mamba's sequence as are seen in the whole
            batch. Those that are masked stand at its end, where the scan does not see them: it costs time and changes
            no result. For encoders that leave tokens out.
        data_preprocessor: See mmengine's BaseModel; the default moves tensors to the model's device.

    Raises:
        ModelError: The encoder is unknown or cannot be built, or its maps do not fit.
        ConfigError: An option is none of its values.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        mask_ratio: float = 0.75,
        decoder_dim: int = 768,
        tokens: str = "interpolate",
        mix_layout: bool = False,
        keep_batch: bool = False,
        data_preprocessor: Mapping[str, Any] | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor)
        if tokens not in TOKENS:
            raise ConfigError(f"model.tokens is one of {TOKENS}, not {tokens!r}.")
        if not 0 < mask_ratio < 1:
            raise ConfigError(f"model.mask_ratio is a share between 0 and 1, not {mask_ratio!r}.")
        self.network = dict(network)
        self.encoder: Any = _build_encoder(**network)
        self.mask_ratio, self.tokens = mask_ratio, tokens
        self.mix_layout, self.keep_batch = mix_layout, keep_batch
        self.drops_tokens = "visible" in inspect.signature(self.encoder.forward).parameters
        dims, channels = network.get("spatial_dims", 2), self.encoder.channels
        reductions = [(step,) * dims if isinstance(step, int) else tuple(step) for step in self.encoder.reductions]
        self.stride, self.in_chans = reductions[-1], network.get("in_chans") or (1 if dims == 3 else 3)
        try:
            steps = decoder_steps(reductions)
        except ValueError as error:
            raise ModelError(f"'{network['encoder']}' cannot be pre-trained so: {error}.") from error
        if decoder_dim % 2 ** len(steps):
            raise ConfigError(
                f"model.decoder_dim is halved {len(steps)} times for this encoder, which {decoder_dim} cannot be."
            )
        self.levels = [level for _, level in steps]
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.projections, self.mask_tokens = nn.ModuleDict(), nn.ParameterDict()
        for i, level in enumerate(self.levels):
            if level is not None:
                side = 3 if i else 1
                self.projections[str(i)] = conv(channels[level], decoder_dim >> i, side, padding=side // 2)
                if i:
                    self.mask_tokens[str(i)] = nn.Parameter(torch.zeros(1, channels[level], *[1] * dims))
                    nn.init.trunc_normal_(self.mask_tokens[str(i)], std=0.02, a=-0.02, b=0.02)
        # Of the coarsest map: at every masked place, or at the masked ends of the sequence that is interpolated.
        self.empty = nn.Parameter(torch.randn(1, channels[-1], *[1] * dims) * 0.02)
        self.interpolation = nn.Parameter(torch.zeros(channels[-1], channels[-1])) if tokens == "interpolate" else None
        self.decoder = LightDecoder(steps, decoder_dim, self.in_chans)

    def init_weights(self) -> None:
        """Do nothing: the network is initialised; mmengine's own method would start its parts once more."""

    def convert_weights(self, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
        """A checkpoint of the official pre-training, to our names and shapes.

        Its parameters that never get a gradient are left out: `fuse.0`, and what belongs to the full resolution.

        Raises:
            CheckpointError: The encoder's weights do not fit.
        """
        weights = unwrap_official(state_dict)
        encoder = {k: v for k, v in weights.items() if k.startswith("sparse_encoder.")}
        rest = rename({k: v for k, v in weights.items() if k not in encoder}, _RENAMES)
        unread = (
            "decoder.fuse.0.",
            "mask_tokens.0",
            f"mask_tokens.{len(self.levels)}",
            f"projections.{len(self.levels)}.",
        )
        found = {k: v for k, v in rest.items() if not k.startswith(unread)}
        found["empty"] = weights["sparse_encoder.mae.mask_token"]
        found |= {f"encoder.{k}": v for k, v in self.encoder.convert_weights(encoder).items()}
        reshape_like(found, self.state_dict())
        return found

    def encoder_weights(self) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of the encoder alone, as `pretrained` of the fine-tuning configs takes them.

        Those of HyMamba are in the layout of the official files. Those of images' encoders have the names of the timm
        model, with its layers behind the last map at their start.

        Returns:
            The weights, and the names of those that were not trained.
        """
        weights = {k: v.detach().cpu() for k, v in self.encoder.state_dict().items()}
        if isinstance(self.encoder, HyMambaEncoder):
            token = self.empty.detach().cpu().flatten()[None, None]
            return {**to_official(weights), "mae.mask_token": token}, []
        if len(self.stride) == 3:
            return weights, []
        options = dict(self.network.get("encoder_options") or {}, in_chans=self.in_chans, num_classes=0)
        whole = timm.create_model(self.network["encoder"], **options).state_dict()
        # timm's wrappers of feature maps put a prefix in front, and write "stem_0" for "stem.0".
        own = {name.replace(".", "_"): value for name, value in weights.items()}
        trained = {}
        for name in whole:
            flat = name.replace(".", "_")
            found = next((own[p + flat] for p in ("backbone_", "backbone_model_") if p + flat in own), None)
            if found is not None:
                trained[name] = found
        return {**whole, **trained}, [name for name in whole if name not in trained]

    def draw(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw masks for images (B, C, H, W) or volumes; see :func:`draw_mask`."""
        grid = [size // step for size, step in zip(image.shape[2:], self.stride, strict=True)]
        return draw_mask(len(image), grid, self.mask_ratio, generator, image.device)

    def encode(self, image: Tensor, visible: Tensor) -> list[Tensor]:
        """The encoder's maps, fine to coarse; 0 at masked places, of the coarsest map `empty`.

        Raises:
            ConfigError: The sides of the images are no multiples of the encoder's stride.
        """
        mask = mask_at(visible, image.shape[2:])
        if mask is None or tuple(n * g for n, g in zip(self.stride, visible.shape[2:], strict=True)) != tuple(
            image.shape[2:]
        ):
            raise ConfigError(
                f"Masked pre-training takes sides that are multiples of the encoder's strides {self.stride}, not "
                f"{tuple(image.shape[2:])}."
            )
        options: dict[str, Any] = {}
        if self.drops_tokens:
            seen = visible.flatten(1).sum(1)
            keep = min(int(seen.sum()), visible[0].numel()) if self.keep_batch else None
            options = dict(visible=visible, keep=keep)
        with sparse_form(self.encoder, visible):
            maps = list(self.encoder(image.masked_fill(~mask, 0.0), **options))
        maps[-1] = torch.where(visible, maps[-1], self.empty.to(maps[-1]))
        return maps

    def densify(self, maps: Sequence[Tensor], visible: Tensor) -> list[Tensor | None]:
        """Fill the maps and project them to the decoder's widths, coarse to fine; None where a step has no map."""
        x = maps[-1]
        if self.interpolation is not None:
            tokens = x.flatten(2).transpose(1, 2)
            filled = interpolate_tokens(tokens, visible.flatten(1), self.interpolation.to(x))
            filled = filled if self.mix_layout else filled.transpose(1, 2)
            x = torch.where(visible, x, filled.reshape(x.shape))
        dense: list[Tensor | None] = [self.projections["0"](x)]
        for i, level in enumerate(self.levels[1:], start=1):
            if level is None:
                dense.append(None)
                continue
            token = self.mask_tokens[str(i)]
            y = torch.where(mask_at(visible, maps[level].shape[2:]), maps[level], token.to(maps[level]))
            dense.append(self.projections[str(i)](y))
        return dense

    def reconstruct(self, image: Tensor, visible: Tensor) -> Tensor:
        """The decoder's image (B, C, ...), whose patches are normalised ones."""
        return self.decoder(self.densify(self.encode(image, visible), visible))

    def losses(self, image: Tensor, visible: Tensor) -> Tensor:
        """Mean squared error of the masked patches of each sample, (B,), float32."""
        guess = patchify(self.reconstruct(image, visible).float(), self.stride)
        target = patchify(image.float(), self.stride)
        mean, deviation = patch_moments(target)
        error = (guess - (target - mean) / deviation).square().mean(-1)
        masked = ~visible.flatten(1)
        return (error * masked).sum(1) / (masked.sum(1) + 1e-8)

    def forward(
        self,
        image: Tensor | None = None,
        inputs: Tensor | None = None,
        mode: str = "tensor",
        visible: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Run the network.

        Args:
            image: (B, C, H, W) or (B, C, D, H, W), as medical data sets call it.
            inputs: The same, as data sets of classifiers call it.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``.
            visible: The mask (B, 1, ...), bool; None: drawn.
            **others: Labels and what else is in a batch; not used.

        Returns:
            ``"tensor"``: the reconstruction. ``"loss"``: ``{"loss": scalar}``. ``"predict"``: of each sample a dict
            with its ``loss``.

        Raises:
            ValueError: ``mode`` is none of the three.
        """
        x = image if image is not None else inputs
        if x is None or mode not in ("tensor", "loss", "predict"):
            raise ValueError(f"mode must be 'tensor', 'loss' or 'predict' with an image, not '{mode}'.")
        visible = self.draw(x) if visible is None else visible
        if mode == "tensor":
            return self.reconstruct(x, visible)
        losses = self.losses(x, visible)
        return {"loss": losses.mean()} if mode == "loss" else [{"loss": loss} for loss in losses]


def _build_encoder(
    encoder: str,
    spatial_dims: int = 2,
    in_chans: int | None = None,
    pretrained: Any = False,
    encoder_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    try:
        if spatial_dims == 3:
            return create_volume_encoder(encoder, in_chans or 1, pretrained, encoder_options)
        if spatial_dims == 2:
            return create_encoder(encoder, in_chans or 3, pretrained, False, encoder_options)
    except UserError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise ModelError(f"The encoder '{encoder}' cannot be built: {error}.") from error
    raise ModelError(f"spatial_dims must be 2 (images) or 3 (volumes), got {spatial_dims!r}.")

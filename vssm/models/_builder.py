"""Building a registered model, with or without its published weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from timm.models._hub import download_cached_file
from torch import nn

from .._errors import UserError
from ..checkpoint import CheckpointError, adapt_to, count_classes, read_checkpoint, unwrap_state_dict

__all__ = ["build_model", "imagenet_cfg", "published_weights"]

Model = TypeVar("Model", bound=nn.Module)


def imagenet_cfg(**fields) -> dict[str, Any]:
    """A pretrained config in timm's sense: how all families here were trained and tested on ImageNet, and `fields`."""
    common = dict(
        url="",
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.875,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        classifier="head.fc",
    )
    return common | fields


class _NoDownloadError(UserError, ValueError):
    """Weights were not published in a way that a program can fetch them."""


class _DownloadError(UserError, RuntimeError):
    """Weights could not be fetched."""


def published_weights(variant: str, cfg: dict[str, Any], cache_dir: str | None) -> dict[str, Any] | None:
    """Read the checkpoint that a pretrained config names; None when timm finds it by itself (a hub)."""
    if cfg.get("source") == "local-dir":
        return read_checkpoint(_checkpoint_in(Path(cfg["file"])))
    if cfg.get("source") == "hf-hub" or cfg.get("state_dict"):
        return None
    if cfg.get("file"):
        return read_checkpoint(cfg["file"])
    if cfg.get("hf_hub_id"):
        return None
    if not cfg.get("url"):
        where = f" ({cfg['description'].rstrip('.')})" if cfg.get("description") else ""
        reason = f"{variant} has no published weights that can be downloaded directly{where}"
        raise _NoDownloadError(
            f"{reason}; use pretrained=False, or pretrained_cfg_overlay=dict(file=...) to load a file of your own",
            for_tools=f"{reason}; fetch the file by hand and give it with --checkpoint instead of --pretrained",
        )
    try:
        # The file name carries the hash where one is known.
        path = download_cached_file(cfg["url"], check_hash=True, progress=True, cache_dir=cache_dir)
    except (URLError, OSError) as error:
        reason = f"cannot download the weights of {variant} from {cfg['url']} ({error}); fetch the file by hand and "
        raise _DownloadError(
            f"{reason}pass pretrained_cfg_overlay=dict(file=...)",
            for_tools=f"{reason}give it with --checkpoint instead of --pretrained",
        ) from None
    return read_checkpoint(path)


def _checkpoint_in(folder: Path) -> Path:
    """Find the weights in a folder of the hub's form. Old versions of timm unpickle them, even safetensors."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(p for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".pth", ".pt"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "no .safetensors, .bin, .pth or .pt file"
        raise CheckpointError(f"{folder} should hold model.safetensors or one other checkpoint; it has {names}")
    return found[0]


def build_model(
    model_cls: type[Model],
    variant: str,
    pretrained: bool,
    pretrained_filter_fn: Callable,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    feature_indices: Sequence[int] = (0, 1, 2, 3),
    **kwargs,
) -> Model:
    """timm's `build_model_with_cfg`, reading official files safely and never falling back to random weights.

    A file's classifier is loaded where the caller wants as many classes, which is so where none are asked for. Layers
    start afresh only where the caller asks for other classes.

    `feature_indices` are the stages (or blocks) whose maps `features_only` gives unless the caller chooses; the rest is
    as in timm.

    Raises:
        ValueError: the variant has no published weights, or the checkpoint does not fit.
        RuntimeError: the download failed.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    given = overlay.get("state_dict")
    if pretrained:
        cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay).to_dict()
        stored = cfg.get("state_dict") or published_weights(variant, cfg, cache_dir)
        if stored is not None:
            _note_classes(stored, cfg, overlay)

    def complete(state_dict: dict, model: Any) -> dict:
        weights = pretrained_filter_fn(state_dict, model)
        other_classes = bool(kwargs.get("features_only")) or model.num_classes != model.pretrained_cfg["num_classes"]
        adapt_to(weights, model, channels="in_chans" in kwargs, classes=other_classes)
        return weights

    model: Any = build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=overlay,
        pretrained_filter_fn=complete,
        cache_dir=cache_dir,
        feature_cfg=dict(out_indices=tuple(feature_indices), feature_cls="getter"),
        **kwargs,
    )
    if given is None:  # not kept alive, nor written into a hub's config.json
        model.pretrained_cfg.pop("state_dict", None)
    return model


def _note_classes(stored: dict[str, Any], cfg: dict[str, Any], overlay: dict[str, Any]) -> None:
    """Hand a checkpoint on, with the number of its classes: where timm sees another, it drops the classifier."""
    classifier = cfg.get("classifier") or ()
    weights = unwrap_state_dict(stored)
    classes = count_classes(weights, (classifier,) if isinstance(classifier, str) else classifier)
    claimed = overlay.get("num_classes")
    if classes is not None and claimed not in (None, classes):
        raise CheckpointError(f"the checkpoint's classifier is of {classes} classes, not of {claimed}")
    overlay["state_dict"] = stored
    overlay["source"] = ""  # with "local-dir" timm would read the folder again
    if classes is not None:
        overlay["num_classes"] = classes

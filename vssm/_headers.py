"""What the headers of the configs say: the comments above `_base_`, where published figures stand beside ours."""

import re
from dataclasses import dataclass
from pathlib import Path

from ._errors import UserError

__all__ = ["DenseHeader", "MedicalHeader", "configs", "read_dense", "read_medical"]

# Configs of small sets made here: nothing was published for them.
_OWN = ("_digits", "_mni152")


@dataclass(frozen=True)
class DenseHeader:
    """Of a detector's or segmentor's config. Figures as printed; empty where none is known.

    Attributes:
        head: the network on top of the backbone, for example "Mask R-CNN".
        backbone: timm's name.
        params: parameters of this package's model, in millions.
        gflops: of this package's model at the size that papers take for the data set.
        box_ap, mask_ap: published for COCO val2017, per cent.
        miou, miou_tta: published for ADE20K val, per cent, without and with averaging over scales and flips.
        weights: address of the authors' file.
    """

    head: str
    backbone: str
    params: str
    gflops: str
    box_ap: str
    mask_ap: str
    miou: str
    miou_tta: str
    weights: str


@dataclass(frozen=True)
class MedicalHeader:
    """Of a medical network's config. Figures as published, per cent (HD95: voxels); empty where none is known."""

    network: str
    source: str
    dice: str
    hd95: str
    miou: str


def configs(folder: Path) -> list[Path]:
    """The configs of a folder that repeat a published run, by name."""
    return sorted(path for path in folder.glob("*.py") if not any(own in path.stem for own in _OWN))


def _comments(path: Path) -> str:
    """The header as one line of text."""
    lines = path.read_text().partition("\n_base_ =")[0].splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""


def read_dense(path: Path) -> DenseHeader:
    """Read the header of a config in `configs/detection` or `configs/segmentation`.

    Raises:
        UserError: the header does not name network, parameters and GFLOPs, or is silent about what was published.
    """
    text = _comments(path)
    ours = re.match(r"([\w &-]+) on (\w+), .*?: ([\d.]+) M parameters, (\d+) GFLOPs at", text)
    if not ours:
        raise UserError(
            f"The header of {path.name} must begin '# NETWORK on BACKBONE, SCHEDULE: N M parameters, N GFLOPs at SIZE'."
        )
    if not re.search(r"Published for (COCO val2017|ADE20K val): |Nothing was published for it\.", text):
        raise UserError(
            f"The header of {path.name} must say 'Published for DATA: ...' or 'Nothing was published for it.'"
        )
    if "Weights: " not in text:
        raise UserError(f"The header of {path.name} must say 'Weights: ADDRESS', or where they are.")
    return DenseHeader(
        *ours.groups(),
        box_ap=_first(r"box AP (\d+\.\d+)", text),
        mask_ap=_first(r"mask AP (\d+\.\d+)", text),
        miou=_first(r"mIoU (\d+\.\d+)", text),
        miou_tta=_first(r", (\d+\.\d+) with TTA", text),
        weights=_first(r"Weights: (https\S+)", text),
    )


def read_medical(path: Path) -> MedicalHeader:
    """Read the header of a config in `configs/medical`.

    Raises:
        UserError: the header does not begin with the network, or is silent about what was published.
    """
    text = _comments(path)
    network = _first(r"^(\w+): [\d.]+ M parameters", text)
    if not network or "Published" not in text:
        raise UserError(
            f"The header of {path.name} must begin '# NETWORK: N M parameters' and say 'Published (SOURCE): ...' "
            f"or 'Published: none ...'."
        )
    published = re.search(r"Published \((.*?)\): (.*)", text)
    source, figures = published.groups() if published else ("", "")
    return MedicalHeader(
        network,
        source,
        dice=_first(r"Dice (\d+\.\d+)", figures),
        hd95=_first(r"HD95 (\d+\.\d+)", figures),
        miou=_first(r"mIoU (\d+\.\d+)", figures),
    )

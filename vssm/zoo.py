"""The pages of the model zoo: what every model costs, what was published for it, and how closely it was checked.

`make zoo` writes them. All figures come from elsewhere: the registry, the models themselves, `vssm.published`, the
headers of the configs, and the measurements in `benchmarks/results`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from . import medical, models
from ._errors import UserError
from ._headers import configs, read_dense, read_medical
from .profiling import paper_flops
from .profiling.results import read_results, shared
from .published import NETWORKS, PUBLISHED, Published

__all__ = ["disagreement", "pages"]

_NONE = "–"
# A column of a table, and the field of a config's header that fills it.
_DENSE = {
    "detection": {"box AP, published": "box_ap", "mask AP, published": "mask_ap"},
    "segmentation": {"mIoU, published": "miou", "mIoU with TTA, published": "miou_tta"},
}
_MEDICAL = {"mean Dice, %": "dice", "HD95": "hd95", "mIoU, %": "miou", "source": "source"}

_MARK = "<!-- The table is written by `make zoo`, from the headers of the configs. -->\n"

_INTRODUCTION = """\
# Model zoo

Written by `make zoo`; not edited by hand. Every family also has a `_pico` for demos and tests, which is not listed.

- **px**: side of the square images; **M**: parameters in millions.
- **GFLOPs**: counted here as the papers count (`vssm.profiling.paper_flops`), with what was **printed** beside it.
  Where the two are not the same to the last printed digit, a note says why.
- **top-1**: published by the authors for ImageNet-1k's validation set, per cent; not measured here.
- **weights**: `pretrained=True` downloads a file, or loads it from the hub; what has to be fetched by hand is loaded
  with `pretrained_cfg_overlay=dict(file=...)`.
- **deviation**: from vectors of the official model: of outputs and feature maps, then of the input's gradient,
  relative to their size; the largest that the tests measured, in float32 or, where it says f64, in float64. The parity
  tests of the families and networks that magnify rounding say why they do. A dash: no vectors of this size.
"""
_DETECTION = """\
## Detection on COCO

Published for val2017, per cent, not measured here (EfficientVMamba's from secondary sources, not checked against the
paper); GFLOPs at 1280 x 800 pixels.
[How to train and test](configs/detection/README.md).
"""
_SEGMENTATION = """\
## Segmentation on ADE20K

Published for the validation set, per cent, not measured here (EfficientVMamba's from secondary sources, not checked
against the paper); GFLOPs at 2048 x 512 pixels.
[How to train and test](configs/segmentation/README.md).
"""
_MEDICAL_NETWORKS = """\
## Medical networks

In `vssm.medical`. The results in the second table are published, not measured here; HD95 is in
voxels, and mIoU the lesion's alone.
"""


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


class _Notes:
    """What is said below a table, numbered in the order of the marks."""

    def __init__(self):
        self.texts: list[str] = []

    def mark(self, text: str | None) -> str:
        """What a cell ends in to point at a note; nothing where there is none."""
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f" <sup>{self.texts.index(text) + 1}</sup>"

    def __str__(self) -> str:
        texts = (re.sub(r"https://\S*[^\s.,]", r"<\g<0>>", text.rstrip(".")) for text in self.texts)
        lines = (f"{i}. {text[0].upper()}{text[1:]}.\n" for i, text in enumerate(texts, 1))
        return "\n" + "".join(lines) if self.texts else ""


def disagreement(name: str, counted: float, known: Published) -> str:
    """Why our GFLOPs are not the printed ones; empty where they are, to the last printed digit.

    Raises:
        UserError: they differ and nobody says why, or they agree in spite of a reason.
    """
    agree = f"{counted:.{len(known.gflops.partition('.')[2])}f}" == known.gflops
    if agree == bool(known.not_reproduced):
        what = "agree, so there must be no reason" if agree else "differ, so it must say why"
        raise UserError(f"vssm/published.py: {name} has {known.gflops} GFLOPs and counts {counted:.4f}; they {what}.")
    return known.not_reproduced


def _cost(model: nn.Module, input_size: Sequence[int]) -> tuple[float, float]:
    """Parameters in millions and GFLOPs of a model on the meta device."""
    gflops = paper_flops(model.to_empty(device="cpu"), input_size) / 1e9  # nobody looks at the values
    return sum(p.numel() for p in model.parameters()) / 1e6, gflops


class _Measured:
    """The newest measurements in `benchmarks/results`, whose files' names begin with their dates."""

    def __init__(self, repo: Path):
        self.folder = repo / "benchmarks" / "results"
        self.files = {"cpu": self._newest("*_models_cpu.json"), "cuda": self._newest("*_models_cuda*.json")}
        self.rows = {
            device: [row for row in read_results(file) if row["mode"] == "infer" and "failed" not in row]
            for device, file in self.files.items()
            if file
        }
        self.files["parity"] = self._newest("*_parity_cpu.json")
        if not self.files["parity"]:
            raise UserError(f"{self.folder} has no *_parity_cpu.json; `make parity` measures it.")
        self.parity = json.loads(self.files["parity"].read_text())

    def _newest(self, pattern: str) -> Path | None:
        return max(self.folder.glob(pattern), default=None)

    def deviation(self, name: str) -> str:
        """The largest of the outputs, and of the gradients, as in "2e-7, 3e-6"."""
        kinds = self.parity["deviations"].get(name)
        return ", ".join(_shortest(kinds.get(kind, {})) for kind in ("outputs", "gradients")) if kinds else _NONE

    def titles(self) -> list[str]:
        """Of the columns of speed."""
        return [f"{device.upper()} x{batch}" for device, batch in self._runs()]

    def cells(self, name: str) -> list[str]:
        """Images per second of a model, one for each title."""
        speeds = {
            (device, row["batch"]): f"{row['images_per_s']:.3g}"
            for device, rows in self.rows.items()
            for row in rows
            if row["model"] == name
        }
        return [speeds.get(run, _NONE) for run in self._runs()]

    def _runs(self) -> list[tuple[str, int]]:
        return sorted({(device, row["batch"]) for device, rows in self.rows.items() for row in rows})

    def __str__(self) -> str:
        """What was measured where."""
        lines = [f"- **deviation** measured in {self._about('parity', self.parity['environment'])}."]
        for device in ("cpu", "cuda"):
            rows = self.rows.get(device)
            about = f"in {self._about(device, shared(rows))}" if rows else "not measured yet"
            lines.append(f"- **{device.upper()} x8**: images per second of inference in batches of 8: {about}.")
        return "\n".join(lines) + "\n"

    def _about(self, kind: str, settings: Mapping[str, Any]) -> str:
        name = self.files[kind].name
        values = "; ".join(f"{key}: {value}" for key, value in settings.items())
        return f"[{name}](benchmarks/results/{name}) ({values})"


def _shortest(by_dtype: dict[str, float]) -> str:
    """The deviation in float32, or in float64 where the tests run in that alone."""
    if not by_dtype:
        return _NONE
    dtype = "float32" if "float32" in by_dtype else "float64"
    return f"{by_dtype[dtype]:.0e}".replace("e-0", "e-") + ("" if dtype == "float32" else " (f64)")


def _weights(cfg: PretrainedCfg, notes: _Notes) -> str:
    if cfg.hf_hub_id:
        return f"[hub](https://huggingface.co/{cfg.hf_hub_id})"
    if cfg.url:
        return f"[file]({cfg.url}){notes.mark(cfg.description)}"
    return f"by hand{notes.mark(cfg.description)}" if cfg.description else "not published"


def _family(family: ModuleType, measured: _Measured) -> str:
    """A family's table, a row for each published training."""
    notes, rows, sources = _Notes(), [], []
    for name, default in family.default_cfgs.items():
        if name.endswith("_pico"):
            continue
        model = timm.create_model(name, device="meta")
        params, gflops = _cost(model, default.default.input_size)
        for tag, cfg in default.cfgs.items():
            full = f"{name}.{tag}"
            known = PUBLISHED.get(full)
            sources += [known.source] if known else []
            printed = f"{known.gflops}{notes.mark(disagreement(full, gflops, known))}" if known else _NONE
            top1 = known.top1 if known else _NONE
            cost = [cfg.input_size[-1], f"{params:.1f}", f"{gflops:.4f}", printed, top1]
            rows.append([f"`{full}`", *cost, _weights(cfg, notes), measured.deviation(name), *measured.cells(name)])
    columns = ["model", "px", "M", "GFLOPs", "printed", "top-1", "weights", "deviation", *measured.titles()]
    links = f"[{cfg.paper_name}]({_arxiv(cfg.paper_ids)}), [official code]({cfg.origin_url})"
    published = ", ".join(dict.fromkeys(sources))
    head = f"{links}. Published figures: {published}. Licence of the weights: {_license(cfg.license)}."
    return f"## {cfg.origin_url.rpartition('/')[2]}\n\n{head}\n\n{_table(columns, rows)}{notes}"


def _arxiv(paper: str) -> str:
    return f"https://arxiv.org/abs/{paper.removeprefix('arXiv:')}"


def _license(name: str) -> str:
    return {"mit": "MIT", "apache-2.0": "Apache-2.0"}.get(name, name)


def _dense(folder: Path, link: str = "") -> str:
    """The table of the configs of detectors or segmentors; `link` leads from the page to the folder."""
    fields = _DENSE[folder.name]
    rows = []
    for path in configs(folder):
        header = read_dense(path)
        figures = [getattr(header, field) or _NONE for field in fields.values()]
        weights = f"[file]({header.weights})" if header.weights else _NONE
        rows.append([f"[{path.stem}]({link}{path.name})", header.params, header.gflops, *figures, weights])
    return _table(["config", "M", "GFLOPs", *fields, "weights"], rows)


def _medical(repo: Path, measured: _Measured) -> str:
    """The medical networks' costs, and the results of their configs."""
    notes, rows = _Notes(), []
    for name, known in NETWORKS.items():
        with torch.device("meta"):
            model = getattr(medical, name)()
        params, gflops = _cost(model, known.input_size)
        printed = f"{known.gflops}{notes.mark(known.counter)}" if known.gflops else _NONE
        links = f"[paper]({_arxiv(known.arxiv)}), [code]({known.code})"
        cost = [known.input_size[-1], f"{params:.1f}", f"{gflops:.2f}", printed]
        rows.append([f"`{name}`", *cost, links, known.weights, _license(known.license), measured.deviation(name)])
    columns = ["network", "px", "M", "GFLOPs", "printed", "official", "weights", "their licence", "deviation"]
    results = []
    for path in configs(repo / "configs" / "medical"):
        header = read_medical(path)
        figures = [getattr(header, field) or _NONE for field in _MEDICAL.values()]
        results.append([f"[{path.stem}](configs/medical/{path.name})", f"`{header.network}`", *figures])
    return f"{_table(columns, rows)}{notes}\n{_table(['config', 'network', *_MEDICAL], results)}"


def _with_table(page: Path) -> str:
    """A page whose last table, under the mark, is made anew."""
    text, mark, _ = page.read_text().partition(_MARK)
    if not mark:
        raise UserError(f"{page} has no line '{_MARK.strip()}', under which its table goes.")
    return f"{text}{mark}\n{_dense(page.parent)}"


def pages(repo: Path) -> dict[Path, str]:
    """All pages that are written from the registry and the configs, by their files.

    Args:
        repo: a checkout of this repository.

    Returns:
        `model_zoo.md`, and the pages of `configs/detection` and `configs/segmentation` with their tables.

    Raises:
        UserError: something is missing or contradicts itself: a header, a measurement, a reason.
        MissingExtraError: fvcore is not installed (the extra [profile]).
    """
    measured = _Measured(repo)
    parts = [
        f"{_INTRODUCTION}{measured}",
        *(_family(family.module, measured) for family in models.families()),
        f"{_DETECTION}\n{_dense(repo / 'configs' / 'detection', 'configs/detection/')}",
        f"{_SEGMENTATION}\n{_dense(repo / 'configs' / 'segmentation', 'configs/segmentation/')}",
        f"{_MEDICAL_NETWORKS}\n{_medical(repo, measured)}",
    ]
    written = {repo / "model_zoo.md": "\n".join(parts)}
    for folder in _DENSE:
        readme = repo / "configs" / folder / "README.md"
        written[readme] = _with_table(readme)
    return written

"""The tables of models: what every one costs, what was published for it, and how closely it was checked.

`make zoo` writes them into their pages. All figures come from elsewhere: the models themselves, `vssm.published`, and
the measurements in `benchmarks/results`.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import DefaultCfg, PretrainedCfg, get_pretrained_cfg
from torch import nn

from . import medical, models
from . import published as data
from ._errors import UserError
from .profiling import paper_flops
from .profiling.results import read_results, shared
from .profiling.subjects import count_subject, find_subjects
from .published import Collection, PublishedRun, expand

__all__ = ["classifier_cost", "dense_cost", "disagreement", "network_cost", "pages", "recipes"]

_NONE = "–"
# The configs of small sets made here: nothing was published for them.
_OWN = ("_digits", "_mni152")
# A column of a table, and the metric that fills it.
_DENSE = {
    "detection": {"box AP, published": "box AP", "mask AP, published": "mask AP"},
    "segmentation": {"mIoU, published": "mIoU", "mIoU with TTA, published": "mIoU (ms+flip)"},
}
_MEDICAL = {"mean Dice, %": "Dice", "HD95": "HD95", "mIoU, %": "mIoU"}

_START, _END = "<!-- Written by `make zoo`, from here -->", "<!-- to here. -->"

_INTRODUCTION = """\
# Model zoo

Written by `make zoo`; not edited by hand. Every family also has a `_pico` for demos and tests, which is not listed.

- **px**: side of the square images; **M**: parameters in millions.
- **GFLOPs**: counted here as the papers count (`vssm.profiling.paper_flops`), with what was **printed** next to it.
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

Published for val2017, per cent, not measured here; GFLOPs at 1280 x 800 pixels.
[How to train and test](configs/detection/README.md).
"""
_SEGMENTATION = """\
## Segmentation on ADE20K

Published for the validation set, per cent, not measured here; GFLOPs at 2048 x 512 pixels.
[How to train and test](configs/segmentation/README.md).
"""
_MEDICAL_NETWORKS = """\
## Medical networks

In `vssm.medical`. The results in the second table are published, not measured here; HD95 is in
voxels, and mIoU counts only the lesion.
"""
_BY_HAND = (
    "no direct download: `pretrained=True` says where the file is, `pretrained_cfg_overlay=dict(file=...)` loads it"
)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


class _Notes:
    """The notes below a table, numbered in the order of their marks."""

    def __init__(self):
        self.texts: list[str] = []

    def mark(self, *texts: str | None) -> str:
        """The marks at the end of a cell that point at notes; empty where there are none."""
        numbers = []
        for text in filter(None, texts):
            if text not in self.texts:
                self.texts.append(text)
            numbers.append(str(self.texts.index(text) + 1))
        return f" <sup>{', '.join(numbers)}</sup>" if numbers else ""

    def __str__(self) -> str:
        texts = (re.sub(r"https://\S*[^\s.,]", r"<\g<0>>", text.rstrip(".")) for text in self.texts)
        lines = (f"{i}. {text[0].upper()}{text[1:]}.\n" for i, text in enumerate(texts, 1))
        return "\n" + "".join(lines) if self.texts else ""


def _like(value: float, printed: str) -> str:
    """A figure with as many decimals as a printed one."""
    return f"{value:.{len(printed.partition('.')[2])}f}"


def disagreement(name: str, what: str, counted: float, printed: str, reason: str) -> str:
    """Say why our figure is not the printed one; nothing where it is, to the last printed digit.

    Args:
        name: The entry in the data files, for the message.
        what: "Parameters" or "FLOPs".
        counted: Our figure.
        printed: The authors'.
        reason: Why they differ.

    Returns:
        The reason.

    Raises:
        UserError: They differ and nobody says why, or they agree in spite of a reason.
    """
    agree = _like(counted, printed) == printed
    if agree == bool(reason):
        then = "agree, so there must be no reason" if agree else "differ, so it must say why"
        raise UserError(f"vssm/published: '{name}' has {printed} as {what} and counts {counted:.4f}; they {then}.")
    return reason


@dataclass(frozen=True)
class _Cost:
    """Of a network.

    Attributes:
        params: Millions of parameters.
        gflops: As the papers count them.
    """

    params: float
    gflops: float


def _cost(model: nn.Module, input_size: Sequence[int]) -> _Cost:
    """Count a model on the meta device."""
    gflops = paper_flops(model.to_empty(device="cpu"), input_size) / 1e9  # nobody looks at the values
    return _Cost(_millions(model), gflops)


def _millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@functools.cache
def classifier_cost(name: str) -> _Cost:
    """Count a classifier of timm's registry at its usual size, once in a process."""
    return _cost(timm.create_model(name, device="meta"), get_pretrained_cfg(name).input_size)


@functools.cache
def network_cost(name: str) -> _Cost:
    """Count a network of `vssm.medical` at the size that its authors take, once in a process."""
    with torch.device("meta"):
        model = getattr(medical, name)()
    return _cost(model, data.NETWORKS[name].input_size)


def dense_cost(path: Path) -> _Cost:
    """Count a detector or segmentor at the usual size, once in a process for all its schedules."""
    return _dense_cost(path.parent, _network(path))


def _network(path: Path) -> str:
    """Head and backbone of a config, without the schedule, which costs nothing."""
    return "_".join(path.stem.split("_")[:2])


@functools.cache
def _dense_cost(folder: Path, network: str) -> _Cost:
    path = min(folder.glob(f"{network}_*.py"))
    subject, cost = count_subject(find_subjects([str(path)])[str(path)])
    return _Cost(_millions(subject.model), cost.flops / 1e9)


def recipes(folder: Path) -> list[Path]:
    """List the configs of a folder that repeat a published run, by name."""
    return sorted(path for path in folder.glob("*.py") if not any(own in path.stem for own in _OWN))


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
        """A sentence that says what was measured and on which machine."""
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
    """The deviation in float32, or in float64 where the tests run only in that."""
    if not by_dtype:
        return _NONE
    dtype = "float32" if "float32" in by_dtype else "float64"
    return f"{by_dtype[dtype]:.0e}".replace("e-0", "e-") + ("" if dtype == "float32" else " (f64)")


def _families() -> list[tuple[Collection, dict[str, DefaultCfg]]]:
    """Families in the order of the tables, and the configs of their models but the `_pico` ones.

    Raises:
        UserError: The models that a family's data file lists as variants are not those that it registers.
    """
    found = []
    for family in models.families():
        collection = next((c for c in data.COLLECTIONS.values() if c.name == family.title), None)
        if collection is None:
            raise UserError(f"vssm/published has no collection '{family.title}'.")
        cfgs = {model: cfg for model, cfg in family.module.default_cfgs.items() if not model.endswith("_pico")}
        listed = [model for variants in collection.variants for model in expand(variants)]
        if sorted(listed) != sorted(cfgs):
            differ = ", ".join(sorted(set(listed) ^ set(cfgs))) or "one is there twice"
            raise UserError(f"vssm/published/{family.name}.yml must list every model once as Variants; {differ}.")
        found.append((collection, cfgs))
    return found


def _weights(cfg: PretrainedCfg, notes: _Notes) -> str:
    if cfg.hf_hub_id:
        return f"[hub](https://huggingface.co/{cfg.hf_hub_id})"
    if cfg.url:
        return f"[file]({cfg.url}){notes.mark(cfg.description)}"
    return f"by hand{notes.mark(cfg.description)}" if cfg.description else "not published"


def _family(collection: Collection, cfgs: Mapping[str, DefaultCfg], measured: _Measured) -> str:
    """A family's table, a row for each published training."""
    notes, rows = _Notes(), []
    for name, default in cfgs.items():
        cost = classifier_cost(name)
        for tag, cfg in default.cfgs.items():
            full, printed, top1 = f"{name}.{tag}", _NONE, _NONE
            known = data.PUBLISHED.get(full)
            if known:
                reason = ""
                if known.gflops:
                    reason = disagreement(full, "FLOPs", cost.gflops, known.gflops, known.not_reproduced)
                printed, top1 = f"{known.gflops or _NONE}{notes.mark(reason)}", known.top1
            cells = [cfg.input_size[-1], f"{cost.params:.1f}", f"{cost.gflops:.4f}", printed, top1]
            rows.append([f"`{full}`", *cells, _weights(cfg, notes), measured.deviation(name), *measured.cells(name)])
    columns = ["model", "px", "M", "GFLOPs", "printed", "top-1", "weights", "deviation", *measured.titles()]
    links = f"[{collection.title}]({collection.paper}), [official code]({collection.code})"
    head = f"{links}. Published figures: {collection.source}. Licence of the weights: {_license(collection.license)}."
    return f"## {collection.name}\n\n{head}\n\n{_table(columns, rows)}{notes}"


def _license(name: str) -> str:
    return {"mit": "MIT", "apache-2.0": "Apache-2.0"}.get(name, name)


def _overview() -> str:
    """The README's table, a row for each group of variants."""
    notes, rows = _Notes(), []
    for collection, cfgs in _families():
        for variants in collection.variants:
            names = expand(variants)
            costs = [classifier_cost(name) for name in names]
            known = [data.published(name) for name in names]
            figures = [", ".join(f"{cost.params:.1f}" for cost in costs), _NONE, _NONE, "never trained", _NONE]
            if all(known):
                figures[1] = ", ".join(f"{cost.gflops:.{1 if cost.gflops >= 1 else 2}f}" for cost in costs)
                figures[2] = ", ".join(one.top1 for one in known)
                figures[3:] = _whose(collection, cfgs[names[0]].default, notes)
            family = "" if variants != collection.variants[0] else f"[{collection.name}]({collection.paper})"
            rows.append([family, f"`{variants}`{notes.mark(collection.note if family else None)}", *figures])
    columns = ["family", "names", "parameters, M", "GFLOPs", "published top-1", "weights", "their licence"]
    return f"{_table(columns, rows)}{notes}"


def _whose(collection: Collection, cfg: PretrainedCfg, notes: _Notes) -> tuple[str, str]:
    """How the weights come, and under which licence."""
    if cfg.hf_hub_id or cfg.url:
        weights = f"download{notes.mark(cfg.description)}"
    else:
        weights = f"by hand{notes.mark(_BY_HAND)}"
    if collection.license.startswith("unspecified"):
        return weights, f"none granted{notes.mark(collection.license.rstrip(')').partition('; ')[2])}"
    return weights, _license(collection.license)


def _run(repo: Path, path: Path) -> PublishedRun | None:
    """The published figures of a config."""
    return data.RUNS.get(str(path.relative_to(repo)))


def _dense_reasons(path: Path, known: PublishedRun) -> dict[str, str]:
    """Why figures of a detector or segmentor are not the printed ones, see `disagreement`."""
    cost = dense_cost(path)
    reasons = {
        what: disagreement(path.stem, what, ours, printed, known.not_reproduced.get(what, ""))
        for what, ours, printed in (
            ("Parameters", cost.params, known.params),
            ("FLOPs", cost.gflops, known.gflops),
        )
        if printed
    }
    if known.also_gflops:
        disagreement(path.stem, "FLOPs", cost.gflops, known.also_gflops, known.also_reason)
    return {what: reason for what, reason in reasons.items() if reason}


def _dense(repo: Path, task: str, link: str = "") -> str:
    """The table of the configs of detectors or segmentors; `link` leads from the page to the folder."""
    notes, rows = _Notes(), []
    for path in recipes(repo / "configs" / task):
        cost, known = dense_cost(path), _run(repo, path)
        figures, weights, about = [_NONE] * len(_DENSE[task]), _NONE, ""
        if known:
            _dense_reasons(path, known)
            figures = [known.metrics.get(metric, _NONE) for metric in _DENSE[task].values()]
            weights = f"[file]({known.weights})" if known.weights else f"{_NONE}{notes.mark(known.weights_note)}"
            source = data.COLLECTIONS[known.collection].source
            about = notes.mark(None if known.source == source else f"published figures: {known.source}", known.note)
        cells = [f"{cost.params:.2f}", f"{cost.gflops:.0f}", *figures, weights]
        rows.append([f"[{path.stem}]({link}{path.name}){about}", *cells])
    return f"{_table(['config', 'M', 'GFLOPs', *_DENSE[task], 'weights'], rows)}{notes}"


def _medical(repo: Path, measured: _Measured) -> str:
    """The medical networks' costs, and the results of their configs."""
    notes, rows = _Notes(), []
    for name, known in data.NETWORKS.items():
        cost, printed = network_cost(name), _NONE
        if known.gflops:
            reason = disagreement(name, "FLOPs", cost.gflops, known.gflops, known.counter)
            printed = f"{known.gflops}{notes.mark(reason)}"
        links = f"[paper](https://arxiv.org/abs/{known.arxiv}), [code]({known.code})"
        cells = [known.input_size[-1], f"{cost.params:.1f}", f"{cost.gflops:.2f}", printed]
        rows.append([f"`{name}`", *cells, links, known.weights, _license(known.license), measured.deviation(name)])
    columns = ["network", "px", "M", "GFLOPs", "printed", "official", "weights", "their licence", "deviation"]
    return f"{_table(columns, rows)}{notes}\n{_medical_results(repo)}"


def _medical_results(repo: Path) -> str:
    notes, rows = _Notes(), []
    for path in recipes(repo / "configs" / "medical"):
        known = _run(repo, path)
        if known is None:
            raise UserError(f"vssm/published/medical.yml has no entry with the Config configs/medical/{path.name}.")
        figures = [known.metrics.get(metric, _NONE) for metric in _MEDICAL.values()]
        link = f"[{path.stem}](configs/medical/{path.name}){notes.mark(known.note)}"
        rows.append([link, known.collection, *figures, known.source if known.metrics else _NONE])
    return f"{_table(['config', 'network', *_MEDICAL, 'source'], rows)}{notes}"


def _not_reproduced(repo: Path) -> str:
    """The table of published figures that our count does not give."""
    rows: dict[tuple, None] = {}  # schedules of a detector share theirs

    def add(name: str, printed: str, unit: str, ours: float, reason: str) -> None:
        if printed and reason:
            rows[name, f"{printed} {unit}", f"{_like(ours, printed)} {unit}", reason] = None

    for full, known in data.PUBLISHED.items():
        name = full.partition(".")[0]
        add(f"`{name}`", known.gflops, "G", classifier_cost(name).gflops, known.not_reproduced)
    for config, known in data.RUNS.items():
        path = repo / config
        if path.parent.name in _DENSE:
            name, cost, reasons = f"`{_network(path)}`", dense_cost(path), _dense_reasons(path, known)
            add(name, known.params, "M", cost.params, reasons.get("Parameters", ""))
            add(name, known.gflops, "G", cost.gflops, reasons.get("FLOPs", ""))
            add(name, known.also_gflops, "G", cost.gflops, known.also_reason)
    for name, known in data.NETWORKS.items():
        add(f"`{name}`", known.gflops, "G", network_cost(name).gflops, known.counter)
    return _table(["network", "published", "ours", "why"], rows)


def _with_table(page: Path, table: str) -> str:
    """Put a table between the marks of a page."""
    before, start, rest = page.read_text().partition(_START)
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise UserError(f"{page} has no lines '{_START}' and '{_END}', between which its table goes.")
    return f"{before}{start}\n\n{table}\n{end}{after}"


def pages(repo: Path) -> dict[Path, str]:
    """Write all tables of models anew.

    Args:
        repo: A checkout of this repository.

    Returns:
        The text of each page that has one, by its file: `model_zoo.md`, the README, the pages of `configs/detection`
        and `configs/segmentation`, and that of the counts.

    Raises:
        UserError: Something is missing or contradicts itself: an entry, a measurement, a reason.
        MissingExtraError: fvcore, mmdet or mmseg is not installed (the extras [profile] and [mm]).
    """
    measured = _Measured(repo)
    parts = [
        f"{_INTRODUCTION}{measured}",
        *(_family(collection, cfgs, measured) for collection, cfgs in _families()),
        f"{_DETECTION}\n{_dense(repo, 'detection', 'configs/detection/')}",
        f"{_SEGMENTATION}\n{_dense(repo, 'segmentation', 'configs/segmentation/')}",
        f"{_MEDICAL_NETWORKS}\n{_medical(repo, measured)}",
    ]
    tables = {
        repo / "README.md": _overview(),
        **{repo / "configs" / task / "README.md": _dense(repo, task) for task in _DENSE},
        repo / "docs" / "flops.md": _not_reproduced(repo),
    }
    written = {repo / "model_zoo.md": "\n".join(parts)}
    return written | {page: _with_table(page, table) for page, table in tables.items()}

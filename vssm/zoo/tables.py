"""The tables of models: what every one costs, what was published for it, and how closely it was checked.

`make zoo` writes them into their pages. All figures come from elsewhere: the models themselves, `vssm.published`, and
the measurements in `benchmarks/results`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from timm.models import DefaultCfg, PretrainedCfg

from .. import published as data
from .._errors import UserError
from ..published import Collection, PublishedRun, expand
from .costs import classifier_cost, dense_cost, disagreement, like, network_cost, network_of, recipes
from .explorer import as_json, explorer_data, license_of, listed_families, weights_of
from .measured import NONE, Measured

__all__ = ["pages"]

# A column of a table, and the metric that fills it.
_DENSE = {
    "detection": {"box AP, published": "box AP", "mask AP, published": "mask AP"},
    "segmentation": {"mIoU, published": "mIoU", "mIoU with TTA, published": "mIoU (ms+flip)"},
    "pose": {"AP, published": "AP"},
}
_SIDE = 224  # of the images that most figures of classifiers are for
_MEDICAL = {"mean Dice, %": "Dice", "HD95": "HD95", "mIoU, %": "mIoU"}

_START, _END = "<!-- Written by `make zoo`, from here -->", "<!-- to here. -->"

_INTRODUCTION = """\
# Model zoo

Every model with its weights, a row for each published training. The [explorer](docs/explorer.md) sorts, filters and
plots the same rows. Written by `make zoo`; every family also has a `_pico` for demos and tests, which is not listed.

- **M**: parameters in millions. **GFLOPs**: counted here as the papers count ([how](docs/flops.md)), for one image of
  224 x 224 pixels, or as a note says. A note also says where the paper prints another figure, and why.
- **top-1**: published by the authors for ImageNet-1k's validation set, per cent; not measured here.
- **weights**: `pretrained=True` downloads a file, or loads it from the hub; what has to be fetched by hand is loaded
  with `pretrained_cfg_overlay=dict(file=...)`.
"""
_CLOSENESS = """\
## Distance from the official models

How far outputs and feature maps, and the gradient of the input, are from vectors of the official model: the largest
that the tests measured, relative to the largest value, in float32 or, where it says f64, in float64. The parity tests
of families and networks that magnify rounding say why they do. Models that are not listed have no vectors of their
size.
"""
_DETECTION = """\
## Detection on COCO

Published for val2017, per cent, not measured here; GFLOPs at 1280 x 800 pixels.
[How to train and test](docs/detection.md).
"""
_SEGMENTATION = """\
## Segmentation on ADE20K, Cityscapes and COCO-Stuff

Published for the validation set, per cent, not measured here; GFLOPs at 2048 x 512 pixels, or as a note says.
[How to train and test](docs/segmentation.md).
"""
_POSE = """\
## Pose estimation on COCO

Published for val2017 and boxes of a detector, per cent, not measured here; GFLOPs of one box.
[How to train and test](docs/pose.md).
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


def _weights(cfg: PretrainedCfg, notes: _Notes) -> str:
    kind, address = weights_of(cfg)
    return f"[{kind}]({address})" + notes.mark(cfg.description) if address else kind + notes.mark(cfg.description)


def _short(gflops: float) -> str:
    """With one decimal, small ones with two."""
    return f"{gflops:.{1 if gflops >= 1 else 2}f}"


def _rough(gflops: float) -> str:
    """Without decimals, small ones as `_short`."""
    return f"{gflops:.0f}" if gflops >= 50 else _short(gflops)


def _family(collection: Collection, cfgs: Mapping[str, DefaultCfg], measured: Measured) -> str:
    """A family's table, a row for each published training."""
    notes, rows = _Notes(), []
    for name, default in cfgs.items():
        cost = classifier_cost(name)
        for tag, cfg in default.cfgs.items():
            full, top1, printed = f"{name}.{tag}", NONE, None
            known = data.PUBLISHED.get(full)
            if known:
                top1 = known.top1
                if known.gflops:
                    reason = disagreement(full, "FLOPs", cost.gflops, known.gflops, known.not_reproduced)
                    printed = reason and f"printed: {known.gflops}. {reason[0].upper()}{reason[1:]}"
            side = cfg.input_size[-1]
            size = None if side == _SIDE else f"at {side} x {side} pixels"
            cells = [f"{cost.params:.1f}", f"{_short(cost.gflops)}{notes.mark(size, printed)}", top1]
            rows.append([f"`{full}`", *cells, _weights(cfg, notes), *measured.cells(name)])
    columns = ["model", "M", "GFLOPs", "top-1", "weights", *measured.titles()]
    links = f"[{collection.title}]({collection.paper}), [official code]({collection.code})"
    head = (
        f"{links}. Published figures: {collection.source}. Licence of the weights: {_long_license(collection.license)}."
    )
    return f"## {collection.name}\n\n{head}\n\n{_table(columns, rows)}{notes}"


def _long_license(name: str) -> str:
    """With what the data file says of it in brackets."""
    short, note = data.license_parts(name)
    if short == "unspecified":
        return name
    return f"{license_of(short)} ({note})" if note else license_of(short)


def _closeness(names: Iterable[str], measured: Measured) -> str:
    rows = [[f"`{name}`", *measured.deviation(name)] for name in names if measured.deviation(name)]
    return _table(["model", "outputs", "gradients"], rows)


def _overview() -> str:
    """The README's table, a row for each group of variants."""
    notes, rows = _Notes(), []
    for collection, cfgs in listed_families():
        for variants in collection.variants:
            names = expand(variants)
            costs = [classifier_cost(name) for name in names]
            known = [data.published(name) for name in names]
            figures = [", ".join(f"{cost.params:.1f}" for cost in costs), NONE, NONE, "never trained", NONE]
            if all(known):
                figures[1] = ", ".join(_short(cost.gflops) for cost in costs)
                figures[2] = ", ".join(one.top1 for one in known)
                figures[3:] = _whose(collection, cfgs[names[0]].default, notes)
            family = "" if variants != collection.variants[0] else f"[{collection.name}]({collection.paper})"
            rows.append([family, f"`{variants}`{notes.mark(collection.note if family else None)}", *figures])
    columns = ["family", "names", "M", "GFLOPs", "top-1, published", "weights", "licence"]
    return f"{_table(columns, rows)}{notes}"


def _whose(collection: Collection, cfg: PretrainedCfg, notes: _Notes) -> tuple[str, str]:
    """How the weights come, and under which licence."""
    if cfg.hf_hub_id or cfg.url:
        weights = f"download{notes.mark(cfg.description)}"
    else:
        weights = f"by hand{notes.mark(_BY_HAND)}"
    name, note = data.license_parts(collection.license)
    if name == "unspecified":  # first comes what that means
        note = note.partition("; ")[2]
    return weights, f"{license_of(name)}{notes.mark(note)}"


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
        figures, weights, about, size = [NONE] * len(_DENSE[task]), NONE, "", ""
        if known:
            _dense_reasons(path, known)
            figures = [known.metrics.get(metric, NONE) for metric in _DENSE[task].values()]
            weights = f"[file]({known.weights})" if known.weights else f"{NONE}{notes.mark(known.weights_note)}"
            source = data.COLLECTIONS[known.collection].source
            about = notes.mark(None if known.source == source else f"published figures: {known.source}", known.note)
            if known.input_size:
                size = notes.mark("at {2} x {1} pixels".format(*known.input_size))
        cells = [f"{cost.params:.1f}", f"{_rough(cost.gflops)}{size}", *figures, weights]
        rows.append([f"[{path.stem}]({link}{path.name}){about}", *cells])
    return f"{_table(['config', 'M', 'GFLOPs', *_DENSE[task], 'weights'], rows)}{notes}"


def _medical(repo: Path) -> str:
    """The medical networks' costs, and the results of their configs."""
    notes, rows = _Notes(), []
    for name, known in data.NETWORKS.items():
        cost, printed = network_cost(name), None
        if known.gflops:
            reason = disagreement(name, "FLOPs", cost.gflops, known.gflops, known.counter)
            printed = f"printed: {known.gflops}. {reason[0].upper()}{reason[1:]}"
        links = f"[paper](https://arxiv.org/abs/{known.arxiv}), [code]({known.code})"
        height, width = known.input_size[1:]
        about = notes.mark(f"at {height} x {width} pixels", printed)
        cells = [f"{cost.params:.1f}", f"{_short(cost.gflops)}{about}", links]
        rows.append([f"`{name}`", *cells, known.weights, license_of(known.license)])
    columns = ["network", "M", "GFLOPs", "official", "weights", "licence"]
    return f"{_table(columns, rows)}{notes}\n{_medical_results(repo)}"


def _medical_results(repo: Path) -> str:
    notes, rows = _Notes(), []
    for path in recipes(repo / "configs" / "medical"):
        known = _run(repo, path)
        if known is None:
            raise UserError(f"vssm/published/medical.yml has no entry with the Config configs/medical/{path.name}.")
        figures = [known.metrics.get(metric, NONE) for metric in _MEDICAL.values()]
        link = f"[{path.stem}](configs/medical/{path.name}){notes.mark(known.note)}"
        rows.append([link, known.collection, *figures, known.source if known.metrics else NONE])
    return f"{_table(['config', 'network', *_MEDICAL, 'source'], rows)}{notes}"


def _not_reproduced(repo: Path) -> str:
    """The table of published figures that our count does not give."""
    rows: dict[tuple, None] = {}  # schedules of a detector share theirs

    def add(name: str, printed: str, unit: str, ours: float, reason: str) -> None:
        if printed and reason:
            rows[name, f"{printed} {unit}", f"{like(ours, printed)} {unit}", reason] = None

    for full, known in data.PUBLISHED.items():
        name = full.partition(".")[0]
        add(f"`{name}`", known.gflops, "G", classifier_cost(name).gflops, known.not_reproduced)
    for config, known in data.RUNS.items():
        path = repo / config
        if path.parent.name in _DENSE:
            name, cost, reasons = f"`{network_of(path)}`", dense_cost(path), _dense_reasons(path, known)
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
        The text of each page that has one, by its file: `model_zoo.md`, the README, the pages of `configs/detection`,
        `configs/segmentation` and `configs/pose`, and that of the counts; and the data of the site's explorer.

    Raises:
        UserError: Something is missing or contradicts itself: an entry, a measurement, a reason.
        MissingExtraError: fvcore, mmdet or mmseg is not installed (the extras [profile] and [mm]).
    """
    measured, families = Measured(repo), listed_families()
    checked = [*(name for _, cfgs in families for name in cfgs), *data.NETWORKS]
    parts = [
        f"{_INTRODUCTION}{measured.speeds()}",
        *(_family(collection, cfgs, measured) for collection, cfgs in families),
        f"{_DETECTION}\n{_dense(repo, 'detection', 'configs/detection/')}",
        f"{_SEGMENTATION}\n{_dense(repo, 'segmentation', 'configs/segmentation/')}",
        f"{_POSE}\n{_dense(repo, 'pose', 'configs/pose/')}",
        f"{_MEDICAL_NETWORKS}\n{_medical(repo)}",
        f"{_CLOSENESS}{measured.about('parity')}\n\n{_closeness(checked, measured)}",
    ]
    tables = {
        repo / "README.md": _overview(),
        **{repo / "configs" / task / "README.md": _dense(repo, task) for task in _DENSE},
        repo / "docs" / "flops.md": _not_reproduced(repo),
    }
    written = {
        repo / "model_zoo.md": "\n".join(parts),
        repo / "docs" / "explorer" / "zoo.json": as_json(explorer_data(repo)),
    }
    return written | {page: _with_table(page, table) for page, table in tables.items()}

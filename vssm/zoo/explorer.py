"""The zoo as one JSON file: a record for each training, which the site's explorer sorts, filters and plots."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import DefaultCfg, PretrainedCfg, get_pretrained_cfg

from .. import models
from .. import published as data
from .._errors import UserError
from ..published import Collection, expand, license_parts
from .costs import classifier_cost, dense_cost, network_cost, recipes
from .measured import Measured

__all__ = ["as_json", "explorer_data", "license_of", "listed_families", "weights_of"]

_LICENSES = {"mit": "MIT", "apache-2.0": "Apache-2.0"}
# The folders of configs of dense tasks, and what a paper's GFLOPs of one are for, unless its entry says it.
_SIZES = {"detection": "1280 x 800", "segmentation": "2048 x 512", "pose": "192 x 256"}
# The metrics of each task with the words that the explorer writes for them.
_METRICS = {
    "classification": {"Top 1 Accuracy": "top-1 on ImageNet-1k, %"},
    "detection": {"box AP": "box AP on COCO val2017", "mask AP": "mask AP on COCO val2017"},
    "segmentation": {
        "mIoU": "mIoU on ADE20K, %",
        "mIoU (ms+flip)": "mIoU on ADE20K with several scales and flips, %",
        "mIoU, Cityscapes": "mIoU on Cityscapes, %",
        "mIoU, COCO-Stuff": "mIoU on COCO-Stuff 164k, %",
    },
    "pose": {"AP": "keypoint AP on COCO val2017"},
    "medical": {"Dice": "mean Dice of the config's data set, %", "mIoU": "mIoU of the config's data set, %"},
}


def listed_families() -> list[tuple[Collection, dict[str, DefaultCfg]]]:
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


def license_of(name: str) -> str:
    """A licence as it is written in a table, without what a data file says of it in brackets."""
    name, _ = license_parts(name)
    return "none granted" if name == "unspecified" else _LICENSES.get(name, name)


def weights_of(cfg: PretrainedCfg) -> tuple[str, str]:
    """How the weights of a classifier come ("file", "hub", "by hand", "not published"), and from which address."""
    if cfg.hf_hub_id:
        return "hub", f"https://huggingface.co/{cfg.hf_hub_id}"
    if cfg.url:
        return "file", cfg.url
    return ("by hand" if cfg.description else "not published"), ""


def explorer_data(repo: Path) -> dict[str, Any]:
    """Collect what the site's explorer shows.

    Args:
        repo: A checkout of this repository.

    Returns:
        What `json.dumps` takes: ``models``, a record for each training of a model; ``baselines``, records of models of
        timm; ``metrics``, words for the published metrics by task; ``speeds``, words for the measured speeds. A
        record leaves out what is not known.
    """
    measured = Measured(repo)
    records = [
        *_classifiers(measured),
        *(record for task in _SIZES for record in _dense(repo, task)),
        *_medical(repo),
    ]
    machines = {device: measured.machine(device) for device in measured.rows}
    return {
        "about": "Written by `make zoo`.",
        "metrics": _METRICS,
        "speeds": {
            title: f"images per second, {title.partition(' ')[0]}, batches of {title.partition(' x')[2]} "
            f"({machines[title.partition(' ')[0].lower()]})"
            for title in measured.titles()
        },
        "models": records,
        "baselines": _baselines(measured),
    }


def as_json(content: Mapping[str, Any]) -> str:
    """Write the explorer's data, a line for each record, so that a change of one is a change of one line."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            lines = ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in value)
            parts.append(f' "{key}": [\n{lines}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _record(task: str, family: str, name: str, params: float, gflops: float, size: str, **more: Any) -> dict[str, Any]:
    record = dict(
        task=task, family=family, name=name, params=round(params, 1), gflops=float(f"{gflops:.3g}"), size=size
    )
    return record | {key: value for key, value in more.items() if value}


def _figures(task: str, metrics: Mapping[str, str], dataset: str = "") -> dict[str, float]:
    # Metrics of a rarer data set are their own, so that nobody compares them.
    named = {f"{name}, {dataset.partition(' ')[0]}": value for name, value in metrics.items()}
    if dataset and named.keys() & _METRICS[task].keys():
        metrics = named
    return {name: float(metrics[name]) for name in _METRICS[task] if name in metrics}


def _classifiers(measured: Measured) -> list[dict[str, Any]]:
    records = []
    for collection, cfgs in listed_families():
        for name, default in cfgs.items():
            cost = classifier_cost(name)
            for tag, cfg in default.cfgs.items():
                known = data.PUBLISHED.get(f"{name}.{tag}")
                kind, address = weights_of(cfg)
                records.append(
                    _record(
                        *("classification", collection.name, f"{name}.{tag}", cost.params, cost.gflops),
                        size=" x ".join(map(str, cfg.input_size[1:])),
                        published={"Top 1 Accuracy": float(known.top1)} if known else None,
                        speed=measured.speeds_of(name),
                        licence=license_of(collection.license) if kind != "not published" else None,
                        weights={"file": "download", "hub": "download"}.get(kind, kind),
                        address=address,
                        config=known.config if known else None,
                        paper=collection.paper,
                    )
                )
    return records


def _dense(repo: Path, task: str) -> list[dict[str, Any]]:
    records = []
    for path in recipes(repo / "configs" / task):
        cost, config = dense_cost(path), str(path.relative_to(repo))
        known = data.RUNS.get(config)
        family = models.family_of(path.stem.split("_")[1].partition("-")[0])
        collection = data.COLLECTIONS.get(known.collection if known else family.title if family else "")
        weights = "not published"
        if known and (known.weights or known.weights_note):
            weights = "download" if known.weights else "by hand"
        records.append(
            _record(
                *(task, collection.name if collection else "others", path.stem, cost.params, cost.gflops),
                size="{2} x {1}".format(*known.input_size) if known and known.input_size else _SIZES[task],
                published=_figures(task, known.metrics, known.dataset) if known else None,
                licence=license_of(collection.license) if collection and weights != "not published" else None,
                weights=weights,
                address=known.weights if known else None,
                config=config,
                paper=collection.paper if collection else None,
            )
        )
    return records


def _medical(repo: Path) -> list[dict[str, Any]]:
    """A record for each config of a published medical network."""
    records = []
    for path in recipes(repo / "configs" / "medical"):
        config = str(path.relative_to(repo))
        known = data.RUNS.get(config)
        network = path.stem.partition("_")[0].replace("-", "_")
        if known is None or network not in data.NETWORKS:
            continue
        cost, official = network_cost(network), data.NETWORKS[network]
        by_hand = official.weights != "not published"
        records.append(
            _record(
                *("medical", known.collection, path.stem, cost.params, cost.gflops),
                size=" x ".join(map(str, official.input_size[1:])),
                published=_figures("medical", known.metrics),
                licence=license_of(official.license) if by_hand else None,
                weights="by hand" if by_hand else "not published",
                address=official.code if by_hand else None,
                config=config,
                paper=f"https://arxiv.org/abs/{official.arxiv}",
            )
        )
    return records


def _baselines(measured: Measured) -> list[dict[str, Any]]:
    records = []
    for name, known in data.BASELINES.items():
        size = " x ".join(map(str, get_pretrained_cfg(name).input_size[1:]))
        published = {"Top 1 Accuracy": float(known.top1)}
        record = _record("classification", known.family, name, float(known.params), float(known.gflops), size)
        records.append(record | {"published": published, "speed": measured.speeds_of(name), "paper": known.paper})
    return records

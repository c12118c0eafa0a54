"""Figures that the authors of the models published, as printed. Nothing here was measured by this package.

The figures stand in `vssm/published/<family>.yml` and `medical.yml`, in the form of model-index: `Collections`, what
the entries of a file share, and `Models`, one for each training, config or network. They are read when they are first
asked for. Figures are strings, so that the digits stay those that were printed. A collection has:

- `Name`, `Paper` (`Title`, `URL`), `Code` (`URL`); `License`, of the repository, hence of the weights.
- `Source`: where the figures were printed; an entry may name another.
- `Variants`: the models' names as the README's table groups them, braces as in a shell.
- `Weights Note`: where trained weights are, if not at an address. `Note`: what else a reader of the table should know.

An entry has:

- `Name`: timm's name with the tag of the training, the name of a config, or that of a network of `vssm.medical`.
- `In Collection`: a collection of the same file.
- `Metadata`: `Parameters` ("23 M") and `FLOPs` ("5.6 G") as printed; `Official Counter`, the FLOPs that the authors'
  own counter gives for their own code, in more digits than are printed; `Input Size`, [C, H, W], of a network.
- `Also Printed`: other `FLOPs`, which contradict those in `Metadata`, and the `Reason` why those stand there.
- `Not Reproduced`: why our count is not the printed one, for `Parameters` or `FLOPs`.
- `Results`: `Task`, `Dataset` and `Metrics`.
- `Config`: this repository's recipe. `Weights`: the address of the authors' file, and `SHA256` of that file; those of
  classifiers stand in the models' `default_cfgs`.
- `Source`, `Note`, `Weights Note`: as of a collection.

`baselines.yml` is a plain list: the models of timm that pictures show next to the families, in grey.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .._errors import UserError, did_you_mean

__all__ = [
    "BASELINES",
    "COLLECTIONS",
    "NETWORKS",
    "PUBLISHED",
    "RUNS",
    "Baseline",
    "Collection",
    "Published",
    "PublishedNetwork",
    "PublishedRun",
    "Records",
    "expand",
    "license_parts",
    "published",
    "read_file",
]


@dataclass(frozen=True)
class Collection:
    """The facts that the entries of one paper share.

    Attributes:
        name: Of the family or of the medical network.
        file: The data file's name, without its suffix.
        title, paper: The paper's title and its address.
        code: The official repository.
        license: Of the repository, hence of the weights.
        source: Where the figures were printed.
        variants: Names of models as a table groups them, see `expand`.
        weights: Where trained weights are; empty where that is said model by model.
        note: What else a reader of the table should know.
    """

    name: str
    file: str
    title: str
    paper: str
    code: str
    license: str
    source: str
    variants: tuple[str, ...] = ()
    weights: str = ""
    note: str = ""


@dataclass(frozen=True)
class Published:
    """Figures of one training of a model, as strings so that the digits stay those that were printed.

    Attributes:
        params: Parameters in millions; empty where no printed figure is known.
        gflops: GFLOPs at the input size of the model's pretrained config; empty where no printed figure is known.
        top1: Accuracy on ImageNet-1k's validation set, per cent.
        source: Where they were printed.
        not_reproduced: Why our count of the GFLOPs is another; empty where it is the same to the last printed digit.
        counter: GFLOPs that the official counter gives for the official model; empty where that is not known.
        config: The recipe, a path in this repository.
        sha256: Of the authors' file, whose address is in the model's `default_cfgs`; empty where it is not known.
    """

    params: str
    gflops: str
    top1: str
    source: str
    not_reproduced: str = ""
    counter: str = ""
    config: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Baseline:
    """A model of timm that pictures show next to the families, with its paper's figures at 224 x 224 pixels.

    Attributes:
        family: As its authors write it.
        paper: Its address.
        params: Parameters in millions.
        gflops: For one image.
        top1: Accuracy on ImageNet-1k's validation set, per cent.
    """

    family: str
    paper: str
    params: str
    gflops: str
    top1: str


@dataclass(frozen=True)
class PublishedNetwork:
    """A medical network as its authors published it.

    Attributes:
        input_size: (C, H, W) that the authors' figures are for.
        gflops: As printed; empty where no printed figure is known.
        counter: What the authors counted them with, and what it counts.
        arxiv: The paper.
        code: The official repository.
        license: Of the repository, hence of the weights.
        weights: Where trained weights are.
    """

    input_size: tuple[int, int, int]
    gflops: str
    counter: str
    arxiv: str
    code: str
    license: str
    weights: str


@dataclass(frozen=True)
class PublishedRun:
    """A detector, a segmentor or a medical network as it was trained on one data set.

    Attributes:
        name: Of the config, without its suffix.
        collection: The family or network that it belongs to.
        metrics: Results by the metric's name, per cent (HD95: voxels).
        source: Where they were printed.
        params: Parameters in millions; empty where no printed figure is known.
        gflops: At `input_size`; empty where no printed figure is known.
        also_gflops: Another figure that was printed for the same; empty where there is none.
        also_reason: Why `gflops` is the one to go by.
        not_reproduced: Why our count is another, by "Parameters" or "FLOPs".
        weights: Address of the authors' file; empty where there is none.
        weights_note: Where the weights are, if not at an address.
        sha256: Of that file; empty where it is not known.
        input_size: (C, H, W) of the image that the cost is for; empty: the one that papers usually take for the task.
        dataset: What the metrics are for.
        note: What else a reader of the table should know.
    """

    name: str
    collection: str
    metrics: Mapping[str, str]
    source: str
    params: str = ""
    gflops: str = ""
    also_gflops: str = ""
    also_reason: str = ""
    not_reproduced: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""
    weights_note: str = ""
    sha256: str = ""
    input_size: tuple[int, int, int] | tuple[()] = ()
    dataset: str = ""
    note: str = ""


@dataclass(frozen=True)
class Records:
    """The records of data files, each by name: collections, trainings of classifiers, medical networks, and runs.

    Runs go by the paths of their configs in this repository.
    """

    collections: dict[str, Collection] = field(default_factory=dict)
    trainings: dict[str, Published] = field(default_factory=dict)
    networks: dict[str, PublishedNetwork] = field(default_factory=dict)
    runs: dict[str, PublishedRun] = field(default_factory=dict)


_FIGURE = r"\d+(?:\.\d+)?"
_COLLECTION = ("Name", "Paper", "Code", "License", "Source")
_COLLECTION_MORE = ("Variants", "Weights Note", "Note")
_MODEL = ("Name", "In Collection")
_MODEL_MORE = (
    *("Metadata", "Also Printed", "Not Reproduced", "Results", "Config"),
    *("Weights", "SHA256", "Weights Note", "Source", "Note"),
)
_UNITS = {"Parameters": "M", "FLOPs": "G", "Official Counter": "G"}


class _Entry:
    """A mapping of a data file that is taken apart field by field; the first field that is wrong is named."""

    def __init__(self, value: Any, where: str, required: Sequence[str], optional: Sequence[str] = ()):
        self.where = where
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a mapping, not {value!r}.")
        known = [*required, *optional]
        for name in value:
            if name not in known:
                raise UserError(f"{where} has the unknown field {name!r}{did_you_mean(str(name), known)}.")
        for name in required:
            if name not in value:
                raise UserError(f"{where} lacks the field '{name}'.")
        self.fields = value

    def text(self, name: str, pattern: str = r".*\S.*") -> str:
        """A field's text; empty where there is no such field."""
        value = self.fields.get(name, "")
        if name in self.fields and not (isinstance(value, str) and re.fullmatch(pattern, value)):
            raise UserError(f"{self.where} has {value!r} as '{name}', which must be text like {pattern}.")
        return value

    def figure(self, name: str) -> str:
        """A printed figure without its unit."""
        unit = _UNITS.get(name)
        return self.text(name, f"{_FIGURE} {unit}" if unit else _FIGURE).partition(" ")[0]

    def part(self, name: str, required: Sequence[str], optional: Sequence[str] = ()) -> "_Entry":
        """A field that is a mapping itself; an empty one where there is no such field."""
        if name not in self.fields:
            return _Entry({}, self.where, ())
        return _Entry(self.fields[name], f"{self.where}, {name},", required, optional)

    def items(self, name: str) -> list:
        """A field that is a list; an empty one where there is no such field."""
        value = self.fields.get(name, [])
        if not isinstance(value, list):
            raise UserError(f"{self.where} has {value!r} as '{name}', which must be a list.")
        return value


def read_file(path: Path) -> Records:
    """Read and check a data file.

    Raises:
        UserError: A field is unknown, missing or wrong; one sentence names the file, the entry and the field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is not YAML: {' '.join(str(error).split())}.") from error
    file = _Entry(content, path.name, ("Collections", "Models"))
    records = Records()
    for value in file.items("Collections"):
        collection = _collection(value, path)
        records.collections[collection.name] = collection
    for value in file.items("Models"):
        _add_model(records, value, path)
    return records


def _named(value: Any, path: Path) -> str:
    name = value.get("Name") if isinstance(value, dict) else None
    return f"{path.name}: '{name}'" if name else f"{path.name}: an entry without a name"


def _collection(value: Any, path: Path) -> Collection:
    entry = _Entry(value, _named(value, path), _COLLECTION, _COLLECTION_MORE)
    paper, code = entry.part("Paper", ("Title", "URL")), entry.part("Code", ("URL",))
    variants = tuple(entry.items("Variants"))
    if not all(isinstance(variant, str) for variant in variants):
        raise UserError(f"{entry.where} has {variants!r} as 'Variants', which must be a list of names.")
    return Collection(
        name=entry.text("Name"),
        file=path.stem,
        title=paper.text("Title"),
        paper=paper.text("URL", "https://.*"),
        code=code.text("URL", "https://.*"),
        license=entry.text("License"),
        source=entry.text("Source"),
        variants=variants,
        weights=entry.text("Weights Note"),
        note=entry.text("Note"),
    )


def _add_model(records: Records, value: Any, path: Path) -> None:
    entry = _Entry(value, _named(value, path), _MODEL, _MODEL_MORE)
    name, config = entry.text("Name"), entry.text("Config", r"configs/\w+/.*\.py")
    collection = records.collections.get(entry.text("In Collection"))
    if collection is None:
        raise UserError(
            f"{entry.where} is in the collection '{entry.fields['In Collection']}', which {path.name} has not."
        )
    metadata = entry.part("Metadata", (), (*_UNITS, "Input Size"))
    params, gflops, counter = map(metadata.figure, _UNITS)
    sha256 = entry.text("SHA256", "[0-9a-f]{64}")
    reasons = entry.part("Not Reproduced", (), ("Parameters", "FLOPs"))
    metrics = _metrics(entry)
    source = entry.text("Source") or collection.source
    if not config:
        group, record = (
            records.networks,
            PublishedNetwork(
                _input_size(metadata),
                gflops,
                counter=reasons.text("FLOPs"),
                arxiv=collection.paper.rpartition("/")[2],
                code=collection.code,
                license=collection.license,
                weights=collection.weights,
            ),
        )
    elif config.startswith("configs/classification/"):
        top1 = metrics.get("Top 1 Accuracy")
        if not top1:
            raise UserError(f"{entry.where} lacks the field 'Top 1 Accuracy'.")
        group, record = (
            records.trainings,
            Published(params, gflops, top1, source, reasons.text("FLOPs"), counter, config, sha256),
        )
    else:
        also = entry.part("Also Printed", ("FLOPs", "Reason"))
        group, record = (
            records.runs,
            PublishedRun(
                name,
                collection.name,
                metrics,
                source,
                params,
                gflops,
                also_gflops=also.figure("FLOPs"),
                also_reason=also.text("Reason"),
                not_reproduced={kind: reasons.text(kind) for kind in reasons.fields},
                weights=entry.text("Weights", "https://.*"),
                weights_note=entry.text("Weights Note"),
                sha256=sha256,
                input_size=_input_size(metadata) if "Input Size" in metadata.fields else (),
                dataset=_dataset(entry),
                note=entry.text("Note"),
            ),
        )
        name = config
    if name in group:
        raise UserError(f"{entry.where} is there twice.")
    group[name] = record


def _metrics(entry: _Entry) -> dict[str, str]:
    """All results of an entry by the metrics' names."""
    metrics = {}
    for value in entry.items("Results"):
        result = _Entry(value, f"{entry.where}, Results,", ("Task", "Dataset", "Metrics"))
        names = result.fields["Metrics"] if isinstance(result.fields["Metrics"], dict) else ()
        figures = result.part("Metrics", (), tuple(names))
        metrics |= {name: figures.figure(name) for name in names}
    return metrics


def _dataset(entry: _Entry) -> str:
    """The data set of an entry's first result; empty where there is none."""
    results = entry.items("Results")
    return str(results[0]["Dataset"]) if results else ""


def _input_size(metadata: _Entry) -> tuple[int, int, int]:
    size = metadata.items("Input Size")
    if len(size) != 3 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"{metadata.where} has {size!r} as 'Input Size', which must be [C, H, W].")
    return tuple(size)


_FOLDER = Path(__file__).parent
_BASELINES = _FOLDER / "baselines.yml"


@functools.cache
def _baselines() -> dict[str, Baseline]:
    found = {}
    for value in yaml.safe_load(_BASELINES.read_text(encoding="utf-8")):
        entry = _Entry(value, _named(value, _BASELINES), ("Name", "Family", "Paper", "Metadata", "Top 1 Accuracy"))
        metadata = entry.part("Metadata", ("Parameters", "FLOPs"))
        found[entry.text("Name")] = Baseline(
            family=entry.text("Family"),
            paper=entry.text("Paper", "https://.*"),
            params=metadata.figure("Parameters"),
            gflops=metadata.figure("FLOPs"),
            top1=entry.figure("Top 1 Accuracy"),
        )
    return found


@functools.cache
def _records() -> Records:
    """The records of all data files."""
    records = Records()
    for path in sorted(set(_FOLDER.glob("*.yml")) - {_BASELINES}):
        for kind, found in vars(read_file(path)).items():
            known = getattr(records, kind)
            for name in known.keys() & found.keys():
                raise UserError(f"{path.name}: '{name}' is in another file too.")
            known.update(found)
    return records


_LAZY = {"COLLECTIONS": "collections", "PUBLISHED": "trainings", "NETWORKS": "networks", "RUNS": "runs"}


def __getattr__(name: str) -> dict:
    """The files' records when they are first asked for.

    `COLLECTIONS` goes by name, `PUBLISHED` by timm's name with the tag of the training, `NETWORKS` by the name of the
    function in `vssm.medical`, and `RUNS` by the path of the config. `BASELINES` goes by timm's name.
    """
    if name == "BASELINES":
        return _baselines()
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_records(), _LAZY[name])


def license_parts(license: str) -> tuple[str, str]:
    """Split "mit" or "unspecified (what is known)" into the name, "unspecified" if none is granted, and the rest."""
    name, _, note = license.rstrip(")").partition(" (")
    return name, note


def expand(variants: str) -> list[str]:
    """Take a group of names apart: "net_{tiny,small}_v0" is net_tiny_v0 and net_small_v0."""
    before, brace, rest = variants.partition("{")
    choices, _, after = rest.partition("}")
    return [f"{before}{choice}{after}" for choice in choices.split(",")] if brace else [variants]


def published(name: str) -> Published | None:
    """The published figures of a model, for a name without a tag those of its default training; None without any."""
    from timm.models import get_pretrained_cfg

    known = _records().trainings
    if name in known:
        return known[name]
    cfg = None if "." in name else get_pretrained_cfg(name, allow_unregistered=True)
    return known.get(f"{cfg.architecture}.{cfg.tag}") if cfg else None

"""Folders for the Hugging Face hub: weights, the config that timm and transformers read, and a model card.

The card's figures are those that the authors published. They stand in `vssm/published`, and nothing here measures them.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import timm
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import PretrainedCfg
from torch import nn

from . import published as data
from ._errors import UserError
from ._files import FileError, whole_folder
from .models import family_of
from .models.create import create_trained_model
from .published import Collection, Published

__all__ = ["HubError", "model_card", "model_config", "write_hub_folder"]


class HubError(UserError):
    """A checkpoint cannot become a folder for the hub."""


def write_hub_folder(checkpoint: str | os.PathLike, out: str | os.PathLike, name: str, **model_args: Any) -> str:
    """Make a folder for the hub of a classifier's checkpoint: ``model.safetensors``, ``config.json``, ``README.md``.

    With `vssm` imported, ``timm.create_model`` takes the folder as ``"local-dir:FOLDER"`` and, uploaded, as
    ``"hf-hub:USER/NAME"``; ``AutoModelForImageClassification`` of transformers takes it too.

    Args:
        checkpoint: An official checkpoint, or one of this package; read without running code from it.
        out: The folder to make; it must not exist, or be empty.
        name: A model of this package, with the tag of the training where it has several: ``"vssd_tiny.mesa_in1k"``.
        **model_args: Other arguments that the model was trained with. They are written into the config, hence plain
            values: ``in_chans=1``.

    Returns:
        A sentence about what was written, and what has to be known before it is published.

    Raises:
        UserError: The model is not of this package; the checkpoint is missing, damaged or not of this model; the folder
            is there already or cannot be written. Nothing is left of it then.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    family = family_of(name)
    if family is None and timm.is_model(name):
        raise HubError(f"'{name}' is a model of timm, which has a converter of its own for the hub.")
    if family and not timm.is_model(name):
        raise HubError(f"'{name}' is a family; name one of its models: {', '.join(family.variants)}.")
    try:
        json.dumps(model_args)
    except TypeError as error:
        raise HubError(f"The model's arguments must be plain values for config.json: {error}.") from error
    with whole_folder(out) as part:
        model = create_trained_model(name, checkpoint, **model_args)
        config = model_config(model, name, model_args)
        weights = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
        try:
            # transformers refuses a file that does not say whose tensors they are.
            save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise FileError(f"The folder '{out}' cannot be made: {str(error).splitlines()[0]}.") from error
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (part / "README.md").write_text(model_card(name, config, checkpoint), encoding="utf-8")
    about = "" if _granted(_collection(name)) else " Their authors grant no licence: ask them before you publish it."
    return f"{out}: {len(weights)} tensors of {name}, its config and a model card.{about}"


def model_config(model: nn.Module, name: str, model_args: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write down a model as timm's ``config.json``.

    Args:
        model: A classifier.
        name: Its name, with or without a tag.
        model_args: Arguments that it was made with, other than the number of classes.

    Returns:
        The fields ``architecture``, ``num_classes``, ``num_features``, ``model_args`` where there are any, and
        ``pretrained_cfg``, without the address of the file that the weights came from.
    """
    cfg = _cfg(name).to_dict(remove_source=True, remove_null=True)
    args = {"model_args": model_args} if model_args else {}
    channels = (model_args or {}).get("in_chans", cfg["input_size"][0])
    cfg |= {"num_classes": model.num_classes, "input_size": (channels, *cfg["input_size"][1:])}
    if model.num_classes != _cfg(name).num_classes:
        cfg["tag"] = "custom"
    return {
        "architecture": cfg.pop("architecture"),
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        **args,
        "pretrained_cfg": cfg,
    }


def model_card(name: str, config: dict[str, Any], source: Path) -> str:
    """Write the model card of a converted checkpoint.

    Args:
        name: The model, with the tag of its training where it has several.
        config: See `model_config`. Published figures are shown where its number of classes is that of the training that
            they are for.
        source: The file that the weights came from; its name and SHA-256 are shown.

    Returns:
        The text of ``README.md``, with the metadata that the hub reads in front.
    """
    collection, cfg = _collection(name), _cfg(name)
    figures = data.published(f"{cfg.architecture}.{cfg.tag}") if config["num_classes"] == cfg.num_classes else None
    own = figures is None
    full = config["architecture"] if own else f"{cfg.architecture}.{cfg.tag}"
    head = _metadata(full, collection, figures)
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n# {full}\n"]
    paper = f"[{collection.title}]({collection.paper})"
    weights = f"`{source.name}` (SHA-256 `{_sha256(source)}`)"
    if own:
        parts.append(f"A {collection.name} ({paper}) with {config['num_classes']} classes. Weights from {weights}.\n")
    else:
        parts.append(f"{collection.name}: {paper}, [official code]({collection.code}).")
        parts.append(f"Weights from {weights}, under the names of `vssm`; no value was changed.\n")
    parts.append(_USE.format(name=full))
    if figures:
        rows = {"Parameters, M": figures.params, "GFLOPs": figures.gflops, "Top-1 on ImageNet-1k, %": figures.top1}
        rows = {title: value for title, value in rows.items() if value}
        parts.append(f"## Figures\n\nPublished by the authors ({figures.source}); not measured on this file.\n")
        parts += ["| " + " | ".join(row) + " |" for row in (rows, ["---"] * len(rows), rows.values())]
        parts.append("")
    parts.append(f"## Licence\n\n{_license(collection, own)}\n")
    parts.append(f"## Citation\n\n{_citation(collection)}")
    return "\n".join(parts)


_USE = """\
## Use

```python
import timm
import vssm  # registers the model

model = timm.create_model("hf-hub:USER/{name}", pretrained=True)  # or local-dir: and the path of this folder
```
"""


def _metadata(name: str, collection: Collection, figures: Published | None) -> dict[str, Any]:
    """What the hub reads."""
    head: dict[str, Any] = {"library_name": "timm", "pipeline_tag": "image-classification"}
    head["license"] = data.license_parts(collection.license)[0] if _granted(collection) else "unknown"
    head["tags"] = ["image-classification", "timm", "vssm"]
    if figures:
        metric = {"type": "accuracy", "name": "Top-1, published by the authors", "value": float(figures.top1)}
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": "imagenet-1k", "name": "ImageNet-1k"},
            "metrics": [metric],
            "source": {"name": figures.source, "url": collection.code},
        }
        head["datasets"] = ["imagenet-1k"]
        head["model-index"] = [{"name": name, "results": [result]}]
    return head


def _license(collection: Collection, own: bool) -> str:
    whose = "The weights that these were trained from, if any, are" if own else "The weights are"
    if _granted(collection):
        return f"{whose} under the licence of the [official repository]({collection.code}): {collection.license}."
    return f"{whose} those of the [official repository]({collection.code}), whose licence is {collection.license}."


def _granted(collection: Collection) -> bool:
    return data.license_parts(collection.license)[0] != "unspecified"


def _citation(collection: Collection) -> str:
    arxiv = re.fullmatch(r"https://arxiv\.org/abs/((\d\d)\d\d\.\d+)", collection.paper)
    fields = {"title": f"{{{collection.title}}}", "url": collection.paper}
    if arxiv:
        fields |= {"year": f"20{arxiv[2]}", "eprint": arxiv[1], "archivePrefix": "arXiv"}
    lines = "".join(f"  {field} = {{{value}}},\n" for field, value in fields.items())
    return f"```bibtex\n@misc{{{collection.file},\n{lines}}}\n```\n"


def _cfg(name: str) -> PretrainedCfg:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None, name
    return cfg


def _collection(name: str) -> Collection:
    family = family_of(name)
    assert family is not None, name
    if family.title not in data.COLLECTIONS:
        raise HubError(f"vssm/published has no collection '{family.title}', of which the model card is made.")
    return data.COLLECTIONS[family.title]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

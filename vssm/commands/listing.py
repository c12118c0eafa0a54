"""List the names of models, configs or tasks.

vssm list models 'vmamba*' 'vssd*'
vssm list configs 'mask-rcnn*' --json
vssm list tasks
"""

import argparse
import fnmatch
import json
from collections.abc import Iterable

from .._cli import say
from .._errors import UserError, did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("what", choices=("models", "configs", "tasks"), help="what to list")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="only names that match one of these wildcards")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, with more about each")


def _models() -> Iterable[dict]:
    import timm

    import vssm

    names = vssm.list_models()
    pretrained = {name.partition(".")[0] for name in timm.list_pretrained()}
    for name in names:
        module = timm.models.model_entrypoint(name).__module__
        yield dict(name=name, family=module.rpartition(".")[2], pretrained=name in pretrained)


def _configs() -> Iterable[dict]:
    from .._configs import config_names

    for name, path in config_names().items():
        yield dict(name=name, folder=path.parent.name, path=str(path))


def _tasks() -> Iterable[dict]:
    from .._tasks import tasks

    for task in tasks():
        yield dict(name=task.name, models=sorted(task.models))


_KINDS = {"models": _models, "configs": _configs, "tasks": _tasks}


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say; return the exit code or None."""
    entries = list(_KINDS[args.what]())
    patterns = args.patterns or ["*"]
    found = [entry for entry in entries if any(fnmatch.fnmatchcase(entry["name"], one) for one in patterns)]
    if not found:
        near = did_you_mean(patterns[0], [entry["name"] for entry in entries]) if len(patterns) == 1 else ""
        raise UserError(f"None of the {len(entries)} {args.what} matches {' or '.join(map(repr, patterns))}{near}.")
    for entry in found:
        say(json.dumps(entry) if args.json else entry["name"])

"""For mkdocs: the API pages list every family, begin with what is important, and link the names of other libraries."""

import ast
import re
import tempfile
import zlib
from pathlib import Path

import griffe
from markdown import Extension
from markdown.preprocessors import Preprocessor
from mkdocs.plugins import event_priority

ROOT = Path(__file__).parents[1]
# Stands on the API page in place of one entry for each family.
FAMILIES = "<!-- the families -->"
# "::: module" and below it "first: Name Name": these members stand first, then the others of its `__all__`.
FIRST = re.compile(r"^::: (\S+)\n    first: (.+)$", re.MULTILINE)
# Methods that PyTorch, timm, mmengine or mmdet prescribe: their own pages say what they do.
PRESCRIBED = re.compile(
    r"forward|forward_features|forward_head|forward_intermediates|prune_intermediate_layers|init_weights|no_weight_decay"
    r"|load_state_dict|get_classifier|reset_classifier|group_matcher|set_grad_checkpointing|train|transform|optim_context"
    r"|(before|after)_\w+|(build|wrap)_\w+|setup_env|register_default_hooks|call_hook|load_or_resume|compute_metrics"
    r"|load_data_list|dataset_meta|results2json|process|__call__|__new__"
)


class HidePrescribed(griffe.Extension):
    """Leaves methods out that a class of another library prescribes."""

    def on_class(self, *, cls, **kwargs):
        for name in filter(PRESCRIBED.fullmatch, list(cls.members)):
            if cls.members[name].is_function:
                del cls.members[name]


class _BlankBeforeLists(Preprocessor):
    """Markdown renders a list only after an empty line; docstrings, which are read as text, go without one."""

    def run(self, lines):
        done = []
        for line in lines:
            after_text = done and done[-1].strip() and not re.match(r"\s*([-*]|\d+\.) |\s{4}|[|#>`]", done[-1])
            if re.match(r"- \S", line) and after_text:
                done.append("")
            done.append(line)
        return done


class _Lists(Extension):
    def extendMarkdown(self, md):  # noqa: N802, the name is Markdown's
        md.preprocessors.register(_BlankBeforeLists(md), "blank before lists", 15)  # after code blocks were taken out


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config):
    config["markdown_extensions"].append(_Lists())
    options = config["plugins"]["mkdocstrings"].config["handlers"]["python"]
    folder = Path(tempfile.mkdtemp(prefix="inventories"))
    options["inventories"] = [
        {"url": path.as_uri(), "base_url": base} for path, base in _inventories(ROOT / "docs" / "inventory.txt", folder)
    ]
    return config


def _inventories(text, folder):
    """Write the stored list of names as Sphinx inventories, one for each library; gives files and base addresses."""
    for library in text.read_text().split("\n\n")[1:]:
        (name, base), *entries = (line.split() for line in library.strip().splitlines())
        head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: 0\n# The rest is compressed with zlib.\n"
        lines = "".join(f"{entry} py:{role} 1 {where} -\n" for entry, role, where in entries)
        path = folder / f"{name}.inv"
        path.write_bytes(head.encode() + zlib.compress(lines.encode()))
        yield path, base


def _public(module):
    """The `__all__` of a module, read without importing it; empty where it has none."""
    base = (ROOT if module.startswith("vssm.") or module == "vssm" else ROOT / "kernels").joinpath(*module.split("."))
    path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _entry(module, first):
    members = list(dict.fromkeys([*first, *_public(module)]))
    return f"::: {module}\n    options: {{ members: [{', '.join(members)}] }}"


def on_page_markdown(markdown, page, config, files):
    if FAMILIES in markdown:
        from vssm.models import families  # here, because only this page needs it, and it takes seconds

        entries = [_entry(family.module.__name__, [model.__name__ for model in family.models]) for family in families()]
        markdown = markdown.replace(FAMILIES, "\n\n".join(entries))
    return FIRST.sub(lambda match: _entry(match[1], match[2].split()), markdown)

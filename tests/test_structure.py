"""Rules of the house that import-linter does not know, kept for every source file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The folder in which a top-level name is looked up, and the files there.
PLACES = {"vssm": ROOT, "vssm_kernels": ROOT / "kernels"}
FILES = sorted(
    path
    for folder in ("vssm", "kernels/vssm_kernels", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
# Functions that import what a text names.
IMPORTERS = {"import_module", "require", "__import__", "find_spec"}


def name_of(path: Path) -> str:
    """The module's dotted name; of a tool, which is a script, that of a module in the package it stands on."""
    if path.parent == ROOT / "tools":
        return f"vssm.{path.stem}"
    base = ROOT / "kernels" if "kernels" in path.parts else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import of this repository's own modules; of `import module` the name is empty."""
    found = []
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            found += [(module, alias.name) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] in PLACES]


def is_module(name: str) -> bool:
    path = PLACES[name.split(".")[0]].joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rules_of_a_source_file(path):
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= 520
    here = name_of(path).split(".")
    for module, name in imports(path):
        whole = f"{module}.{name}" if name and is_module(f"{module}.{name}") else module
        if whole == module:
            assert not private(name), f"{name} is private to {module}"
        parts = whole.split(".")
        for depth, part in enumerate(parts):
            # Of vssm.models._family the package is vssm.models: only modules in it or below it may import it.
            assert not private(part) or here[:depth] == parts[:depth], (
                f"{whole} is private to {'.'.join(parts[:depth])}"
            )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            ours = str(node.args[0].value).split(".")[0] in PLACES
            assert not (called in IMPORTERS and ours), f"line {node.lineno}: import contracts do not see strings"

"""The README's Python blocks run, in order and in one namespace, and its files exist."""

import re
import shlex
from pathlib import Path

import pytest

import vssm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run():
    pytest.importorskip("segmentation_models_pytorch")
    namespace: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run = [b for b in blocks if not b.startswith("# needs ")]  # a network, or a file of the reader's
    assert len(run) >= 4
    for block in run:
        exec(compile(block, "README.md", "exec"), namespace)  # our own text, not a user's


def test_commands_name_files_that_exist():
    commands = re.findall(r"^(?:torchrun .*?|python )(tools/\S+\.py)(.*)$", README, re.MULTILINE)
    assert commands
    for tool, arguments in commands:
        assert (ROOT / tool).is_file()
        for word in shlex.split(arguments):
            assert not word.startswith("configs/") or (ROOT / word).is_file(), word


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "model_zoo.md",
        "docs/decisions.md",
        "docs/scale.md",
        "docs/benchmark.md",
        "docs/visualize.md",
        "configs/detection/README.md",
        "configs/segmentation/README.md",
    ],
)
def test_links_and_pictures_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target


def test_table_of_models():
    """Every published name is in it, with the figures that the model zoo's page has for its default training."""
    listed: dict[str, tuple[str, ...]] = {}
    for line in README.split("## Models")[1].split("## ")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 5 and cells[2].startswith("`"):
            before, choices, after = re.fullmatch(r"`(\w+)\{(.+)\}(\w*)`.?", cells[2]).groups()
            names = [f"{before}{choice}{after}" for choice in choices.split(",")]
            columns = [["–"] * len(names) if cell == "–" else cell.split(", ") for cell in cells[3:6]]
            assert all(len(column) == len(names) for column in columns), line
            listed |= dict(zip(names, zip(*columns, strict=True), strict=True))
    assert set(listed) == {name for name in vssm.list_models() if not name.endswith("_pico")}

    page = (ROOT / "model_zoo.md").read_text()
    for name, (millions, gflops, top1) in listed.items():
        row = re.search(rf"^\| `{name}\.\w+` \| \d+ \| (.*?) \| (.*?) \| .*? \| (.*?) \|", page, re.MULTILINE)
        assert (millions, top1) == (row[1], row[3]), name
        if gflops != "–":
            unit = 10 ** -len(gflops.partition(".")[2])
            assert float(gflops) == pytest.approx(float(row[2]), abs=0.5 * unit + 0.0005), name  # both are rounded

"""The README's Python blocks run, in order and in one namespace, and its files exist."""

import re
import shlex
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/decisions.md"])
def test_links_and_pictures_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target

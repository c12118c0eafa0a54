"""Every code block in the README and the documentation: Python runs, commands are ones that the tools take."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from vssm._configs import ConfigError, find_config
from vssm.commands import build_parser
from vssm.commands import main as vssm
from vssm_kernels.install import SOURCE, install_command

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "configs/*/README.md")
    for path in ROOT.glob(pattern)
)
# A block of commands behind this comment is run as it stands, in a folder of its own.
RUN_MARK = "<!-- the tests run this -->\n"
# Programs that are not the repository's; their options are not checked.
NNUNET = {f"nnUNetv2_{name}" for name in ("plan_and_preprocess", "train", "predict", "evaluate_folder")}
OTHER_PROGRAMS = {"cibuildwheel", "pip", "pre-commit", "python3", "source", *NNUNET}
# What the site's column shows of a line of code; tests/test_site.py looks at it in a browser.
CODE_COLUMNS = 80


def blocks(page, language):
    return re.findall(rf"((?:{RUN_MARK})?)```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page, marked=False):
    """The command lines of a page as lists of words, without comments and without variables set in front."""
    found = []
    for mark, block in blocks(page, "bash"):
        if mark or not marked:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if ">" in words:  # into a file
                    words = words[: words.index(">")]
                if words:
                    found.append(words)
    return found


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
WITH_COMMANDS = [page for page in PAGES if commands(page)]
WITH_COMMANDS_TO_RUN = [page for page in PAGES if commands(page, marked=True)]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory that looks like the repository, to read from; what is written stays there."""
    for name in ("tools", "configs", "kernels", "benchmarks", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page, checkout, no_scope):
    """In order and in one namespace, but for those whose first line says what else they need."""
    pytest.importorskip("segmentation_models_pytorch")
    namespace: dict = {}
    for _, block in blocks(page, "python"):
        code = compile(block, page, "exec")
        if not block.startswith("# needs "):  # a network, or a file of the reader's
            exec(code, namespace)  # our own text, not a user's


class Parsed(Exception):
    """Instead of what the tool would do next."""


def parse(script, arguments, monkeypatch):
    """Let a tool parse its arguments, and stop it there."""
    real = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        raise Parsed(real(self, *args, **kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [script, *arguments])
        patch.syspath_prepend(str((ROOT / script).parent))
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except Parsed as parsed:
            return parsed.args[0]
        except SystemExit as stop:
            raise AssertionError(f"{script} does not take {shlex.join(arguments)} (exit code {stop.code})") from stop
    raise AssertionError(f"{script} parsed no arguments")


def check_command(words, monkeypatch):
    program, *rest = words
    for word in words:
        assert not word.startswith("configs/") or (ROOT / word).exists(), word
    if program == "torchrun":
        module = rest.index("-m") if "-m" in rest else None
        script = next(i for i, word in enumerate(rest) if word.endswith(".py")) if module is None else module + 1
        program, rest = ("python", rest[script:]) if module is None else (rest[script], rest[script + 1 :])
    if program == "python":
        script, *arguments = rest
        parsed = parse(script, arguments, monkeypatch)
        options = getattr(parsed, "cfg_options", None)
        for config in (word for word in arguments if word.startswith("configs/") and options):
            from vssm.engine.run import load_config, parse_options

            load_config(str(ROOT / config), parse_options(options))
    elif program.endswith(".sh"):
        assert (ROOT / program).is_file()
        # dist_train.sh CONFIG GPUS ..., slurm_train.sh PARTITION JOB_NAME CONFIG ...
        config, options = (rest[0], rest[2:]) if "dist" in program else (rest[2], rest[3:])
        parse("tools/train.py", [config, *options], monkeypatch)
    elif program == "vssm":
        try:
            parsed = build_parser().parse_args(rest)
        except SystemExit as stop:
            raise AssertionError(f"vssm does not take {shlex.join(rest)}") from stop
        config, options = getattr(parsed, "config", None), getattr(parsed, "cfg_options", None)
        if isinstance(config, str) and not config.isupper() and not config.endswith(".py"):
            path = find_config(config)
            if options:
                from vssm.engine.run import load_config, parse_options

                load_config(path, parse_options(options))
    elif program == "eval":
        check_command(shlex.split(rest[0].removeprefix("$(").removesuffix(")")), monkeypatch)
    elif program == "export":
        for inner in re.findall(r"\$\((.*?)\)", " ".join(rest)):
            check_command(shlex.split(inner), monkeypatch)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), rest
    else:
        assert program in OTHER_PROGRAMS, f"no check knows the command {shlex.join(words)}"


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_are_ones_that_the_tools_take(page, monkeypatch):
    pytest.importorskip("mmengine")
    for words in commands(page):
        check_command(words, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "python tools/train.py configs/none.py",
        "python tools/train.py CONFIG --no-such-option",
        "rm README.md",
        "make no",
        "vssm no",
        "vssm train vmamba-pico_no",
        "vssm train vmamba-pico_digits --cfg-options trian_cfg.max_epochs=5",
        "torchrun -m vssm train CONFIG --no-such-option",
        'eval "$(vssm completion none)"',
    ],
)
def test_a_wrong_command_is_found(command, monkeypatch):
    with pytest.raises((AssertionError, ConfigError)):
        check_command(shlex.split(command), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS_TO_RUN)
def test_marked_commands_run(page, checkout, monkeypatch):
    for program, script, *arguments in commands(page, marked=True):
        if program == "vssm":
            assert not vssm([script, *arguments])
            continue
        assert program == "python"
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [script, *arguments])
            with pytest.raises(SystemExit) as stop:
                runpy.run_path(script, run_name="__main__")
        assert not stop.value.code, shlex.join([script, *arguments])


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_fit_into_the_column(page):
    """Of the site, which is 688 pixels wide; longer ones go on behind a backslash."""
    long = [line for _, block in blocks(page, "bash") for line in block.splitlines() if len(line) > CODE_COLUMNS]
    assert not long, f"{page} has lines of over {CODE_COLUMNS} characters: {long}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_install_as_the_messages_say(page):
    known = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    text = (ROOT / page).read_text()
    for quoted, extras in re.findall(r"('[^'\s]*\[([a-z,]+)\]')", text):
        extras = extras.split(",")
        assert install_command(*extras) == f"pip install {quoted}"
        for extra in extras:
            assert re.search(rf"^{extra} = ", known, re.MULTILINE), extra
    if SOURCE == ".":  # the name is not on the index
        assert not re.search(r"pip install(?: -\S+)* '?vssm", text)


def test_one_script_makes_all_pictures():
    """But the drawing of the floors, which is text."""
    made = runpy.run_path(str(ROOT / "docs" / "pictures.py"))["PICTURES"]
    assert set(made) == {path.name for path in (ROOT / "docs" / "images").iterdir()} - {"floors.svg"}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target


def test_every_decision_is_in_the_index_once():
    records = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))
    assert sorted(re.findall(r"\]\((\d+\S+)\)", (ROOT / "docs/decisions/index.md").read_text())) == records

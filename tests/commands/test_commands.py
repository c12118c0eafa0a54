"""The command `vssm`: its table, its help, its mistakes, and the scripts that are the same code."""

import ast
import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from vssm import _cli
from vssm.commands import COMMANDS, build_parser, command_help, main
from vssm.medical.labels import LABEL_ORDERS

ROOT = Path(__file__).parents[2]
# The scripts that are for users; the others are for this repository.
SCRIPTS = {name: name for name in ("train", "test", "predict", "export", "quantize", "benchmark", "visualize")}
SCRIPTS |= {"get_flops": "flops", "convert_checkpoint": "convert", "prepare_data": "prepare"}


def test_every_module_is_a_command_with_a_line_of_help():
    folder = Path(inspect.getfile(main)).parent
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert {module.__name__.rpartition(".")[2] for module in COMMANDS.values()} == modules
    text = " ".join(build_parser().format_help().split())
    for name, module in COMMANDS.items():
        first, blank = module.__doc__.splitlines()[:2]
        assert f"{name} {first}" in text and first.endswith((".", ":")) and not blank
        assert f"vssm {name}" in module.__doc__


# mmengine and what is above it import PyTorch.
HEAVY = ("torch", "timm", "numpy", "yaml", "matplotlib", "PIL", "tqdm", "mmengine", "argcomplete")
LIGHT_HELP = f"""
import sys
import vssm.__main__
from vssm.commands import COMMANDS, build_parser
parser = build_parser()
parser.format_help()
for command in COMMANDS:
    for words in ([command, "--help"],):
        try:
            parser.parse_args(words)
        except SystemExit as stop:
            assert stop.code == 0, words
print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LIGHT_HELP], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert done.stdout.count("usage: vssm ") == len(COMMANDS)


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items())
def test_scripts_are_the_commands(script, command, monkeypatch, capsys):
    tool = runpy.run_path(str(ROOT / "tools" / f"{script}.py"))
    helps = []
    for program, words, call in ((f"{script}.py", [], tool["main"]), ("vssm", [command], main)):
        monkeypatch.setattr(sys, "argv", [program, *words])
        with pytest.raises(SystemExit) as stop:
            call([*words, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out.replace(f"{script}.py", f"vssm {command}")
        helps.append(" ".join(text.split()))
    assert helps[0] == helps[1]


def test_help_of_a_command_is_what_it_prints():
    text = command_help("prepare", "check")
    assert text.startswith("usage: vssm prepare check ") and "--sample N" in text


def test_arguments_that_do_not_go_together_show_the_commands_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "vmamba_pico", "x.onnx", "--img-size", "1", "2", "3"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: vssm export ") and err.endswith("error: --img-size takes one number or two\n")


@pytest.mark.parametrize(
    ("program", "name"), [("/usr/bin/vssm", "vssm"), ("/a/vssm/__main__.py", "vssm"), ("tools/train.py", "train.py")]
)
def test_mistakes_are_one_sentence_of_the_program(program, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program])
    assert _cli.run(main, ["list", "configs", "no-such-config"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"{name}: error: None of the ") and err.count("\n") == 1


def test_label_orders_are_all_offered(capsys):
    """They are written out where the arguments are declared, because importing them takes long."""
    with pytest.raises(SystemExit):
        main(["prepare", "synapse-nifti", "a", "b", "c", "--label-order", "none"])
    choices = capsys.readouterr().err.rpartition("choose from ")[2].strip(" )\n").replace("'", "")
    assert sorted(choices.split(", ")) == sorted(LABEL_ORDERS)


def test_no_command_imports_what_is_heavy_at_its_top():
    """So that the reason is named, should the test above fail."""
    for module in COMMANDS.values():
        for node in ast.parse(Path(module.__file__).read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not {name.split(".")[0] for name in names} & {*HEAVY, "engine", "viz", "profiling"}

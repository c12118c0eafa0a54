"""The tool: its table, its objects, its trees, and what it says of mistakes."""

import json
import sys
from pathlib import Path

import pytest
import timm

from vssm._cli import run
from vssm._errors import UserError
from vssm.profiling import count
from vssm.profiling.subjects import find_subjects
from vssm.published import published

pytest.importorskip("fvcore")
REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "tools"))
import get_flops  # noqa: E402


def objects(capsys, *words: str) -> list[dict]:
    assert run(get_flops.main, [*words, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json(capsys):
    rows = objects(capsys, "vmamba_pic?", "test_resnet", "--img-size", "64", "48x80")
    assert [(row["name"], row["input"]) for row in rows] == [
        (name, size) for name in ("vmamba_pico", "test_resnet") for size in ([3, 64, 64], [3, 48, 80])
    ]
    assert all(set(row) == {"name", "input", "params", "flops", "count", "activations"} for row in rows)
    cost = count(timm.create_model("vmamba_pico"), (3, 48, 80))
    assert rows[1] == dict(
        name="vmamba_pico", input=[3, 48, 80], params=cost.params, flops=cost.flops, count="paper",
        activations=cost.activations,
    )  # fmt: skip


def test_kinds_and_modules(capsys):
    words = ["vmamba_pico", "--img-size", "64"]
    forward = objects(capsys, *words, "--count", "flops", "--depth", "1")[0]
    macs = objects(capsys, *words, "--count", "macs")[0]
    both = objects(capsys, *words, "--count", "flops", "--backward")[0]
    assert forward["flops"] == 2 * macs["flops"] and 2.9 < both["flops"] / forward["flops"] < 3
    assert (forward["count"], macs["count"], both["backward"]) == ("flops", "macs", True)
    assert [m["name"] for m in forward["modules"]][:2] == ["", "stem"]
    assert forward["modules"][0]["flops"] == forward["flops"]


def test_table(capsys):
    assert run(get_flops.main, ["vmamba_tiny_s1l8", "groupmamba_tiny", "vmamba_pico", "--depth", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["input", "M", "params", "GFLOPs", "(paper)", "M", "activations", "published"]
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["vmamba_tiny_s1l8"][1:4] == ["3x224x224", "30.25", published("vmamba_tiny_s1l8").counter]
    assert rows["vmamba_tiny_s1l8"][-1] == published("vmamba_tiny_s1l8").gflops
    assert (
        rows["groupmamba_tiny"][-1] == f"{published('groupmamba_tiny').gflops}*"
        and "* groupmamba_tiny: no count that we know of" in lines[-1]
    )
    assert len(rows["vmamba_pico"]) == 5  # nothing was published
    assert sum("(model)" in line for line in lines) == 3


def test_another_size_has_no_published_figure(capsys):
    assert run(get_flops.main, ["vmamba_tiny_s1l8", "--img-size", "64"]) == 0
    assert "4.9" not in capsys.readouterr().out.splitlines()[1].split()


def test_models_of_one_size_are_made_for_it(capsys):
    rows = objects(capsys, "test_vit", "--img-size", "160", "96")
    assert rows[0]["flops"] > 2 * rows[1]["flops"]


def test_configs_of_classifiers_and_medical_networks(capsys):
    pytest.importorskip("mmengine")
    digits = "configs/classification/vmamba-pico_digits.py"
    names = [str(REPO / digits), str(REPO / "configs/medical/unet-vmamba-pico_mni152.py")]
    rows = objects(capsys, *names)
    assert [row["name"] for row in rows] == names
    assert [row["input"] for row in rows] == [[3, 32, 32], [1, 192, 192]]
    assert f"{rows[1]['params'] / 1e6:.2f}" == "2.29"


def test_the_other_models_are_counted_all_the_same(capsys):
    assert run(get_flops.main, ["vmamba_pico", "no_such_config.py", "--img-size", "64", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["name"] == "vmamba_pico" and "'no_such_config.py' does not exist" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vmamba_picko", "timm knows no model 'vmamba_picko' (did you mean 'vmamba_pico'"),
        ("nothing_*", "No model's name matches 'nothing_*'."),
        ("configs/medical/vm-unet_synaps.py", "does not exist (did you mean 'configs/medical/vm-unet_synapse.py'"),
        ("configs/medical/_base_/slices.py", "describes no model"),
        ("vmamba_tiny_s1l8.wrong_tag", "Invalid pretrained tag"),
    ],
)
def test_refusals(words, message, capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    code = run(get_flops.main, words.split())
    out, err = capsys.readouterr()
    assert code == 2 and message in err and err.count("\n") == 1 and not out.splitlines()[1:]


@pytest.mark.parametrize("words", ["vmamba_pico --backward", "vmamba_pico --img-size 0", "vmamba_pico --depth -1", ""])
def test_wrong_arguments(words):
    with pytest.raises(SystemExit):
        get_flops.main(words.split())


def test_names_of_configs_and_wildcards_of_either():
    """A wildcard that models match stands for these alone."""
    words = ["vmamba_pico", "vm-unet_synapse", "vm-unet_isic*", "vmamba?pico*"]
    assert list(find_subjects(words)) == ["vmamba_pico", "vm-unet_synapse", "vm-unet_isic17", "vm-unet_isic18"]
    with pytest.raises(UserError, match="'vm-unet_isic71' does not exist .did you mean 'vm-unet_isic1"):
        find_subjects(["vm-unet_isic71"])
    with pytest.raises(UserError, match="No model's name matches 'nosuch.'"):
        find_subjects(["nosuch*"])

import json

import pytest

import vssm
from vssm import _cli
from vssm._configs import config_names
from vssm.commands import main


def lines(capsys, *words):
    assert _cli.run(main, ["list", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_models(capsys):
    assert lines(capsys, "models") == vssm.list_models()
    assert lines(capsys, "models", "vssd_t*", "vmamba_pico") == ["vmamba_pico", "vssd_tiny"]
    entries = [json.loads(line) for line in lines(capsys, "models", "vmamba_pico", "vmamba_tiny_s1l8", "--json")]
    assert entries == [
        {"name": "vmamba_pico", "family": "vmamba", "pretrained": False},
        {"name": "vmamba_tiny_s1l8", "family": "vmamba", "pretrained": True},
    ]


def test_configs(capsys):
    assert lines(capsys, "configs") == list(config_names())
    (entry,) = map(json.loads, lines(capsys, "configs", "vmamba-pico*", "--json"))
    assert entry["folder"] == "classification" and entry["path"] == str(config_names()["vmamba-pico_digits"])


def test_tasks(capsys):
    assert "detect objects" in lines(capsys, "tasks")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models", "vsd_tiny"], "models matches 'vsd_tiny' (did you mean 'vssd_tiny'"),
        (["configs", "x*", "zz*"], "configs matches 'x*' or 'zz*'."),
    ],
)
def test_nothing_matches(words, said, capsys):
    assert _cli.run(main, ["list", *words]) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and err.count("\n") == 1

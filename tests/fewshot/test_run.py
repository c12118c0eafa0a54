"""The digits from the base session to the table of all sessions, in one process."""

import json

import pytest

from vssm import _cli
from vssm._errors import UserError
from vssm.commands import main
from vssm.engine.run import test as evaluate
from vssm.engine.run import train
from vssm.fewshot.run import fscil

CONFIG = "projector_vmamba-pico_digits"
# A net of convolutions of a few thousand parameters.
SMALL = [
    "model.model.name=test_resnet",
    "model.model.drop_path_rate=0.0",
    "model.projector.d_state=4",
    "model.projector.dt_rank=4",
    "model.projector.out_channels=10",
    "train_cfg.max_epochs=1",
    "param_scheduler=None",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    metrics = train(CONFIG, str(folder), options=SMALL)
    assert set(metrics) == {"accuracy/top1"}
    return str(folder / "epoch_1.pth")


def test_sessions_of_the_digits(base, tmp_path, capsys):
    words = ["fscil", CONFIG, base, "--work-dir", str(tmp_path), "--seeds", "0", "3", "--device", "cpu"]
    assert _cli.run(main, [*words, "--cfg-options", *SMALL, "incremental.steps=3"]) in (0, None)
    shown = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(shown) if "session" in line and "class means, backbone" in line)
    assert [line.split()[:2] for line in shown[start + 1 : start + 4]] == [["0", "6"], ["1", "8"], ["2", "10"]]
    written = json.loads((tmp_path / "sessions.json").read_text())
    assert written["sizes"] == [6, 2, 2] and [one["seed"] for one in written["seeds"]] == [0, 3]
    assert (tmp_path / "sessions.png").is_file()
    # What is saved answers as the table says.
    metrics = evaluate(
        CONFIG,
        str(tmp_path / "sessions_seed3.pth"),
        str(tmp_path / "again"),
        options=[*SMALL, "model.incremental.layers=2", "test_dataloader.dataset.session=2"],
    )
    assert metrics["accuracy/top1"] == pytest.approx(written["seeds"][1]["sessions"][-1]["all"])


@pytest.mark.parametrize(
    "options, seeds, words",
    [
        (["incremental.step=3"], (0,), "unknown option 'step'"),
        (["model.base_classes=7"], (0,), "6 base classes of 10, but the model has 7 of 10"),
        ([], (1, 1), "different numbers of 0 and more, not 1 1"),
    ],
)
def test_mistakes_are_named(base, tmp_path, options, seeds, words):
    with pytest.raises(UserError, match=words):
        fscil(CONFIG, base, str(tmp_path), seeds, "cpu", [*SMALL, *options])
    assert not list(tmp_path.iterdir())

"""The three tools from end to end, and what they say when something is wrong."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import timm
import torch

from vssm._cli import run
from vssm._errors import UserError
from vssm.classify import Predictor
from vssm.engine.config import explain_config_mistakes
from vssm.models.create import create_model
from vssm_kernels.install import how_to_install

from .conftest import REPO, logged_losses

sys.path.insert(0, str(REPO / "tools"))
import predict as predict_tool  # noqa: E402
import test as test_tool  # noqa: E402
import train as train_tool  # noqa: E402

# pytest collects names that start with "test" from modules it imports.
test_tool.main.__test__ = False


PARTS = ("weight", "bias")


def call(tool, *words):
    """Run a tool in this process; returns its exit code."""
    return run(tool.main, [str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, image_folder):
    """A finished run of two epochs with everything switched on: (config, work dir)."""
    from .conftest import BASE, RUN

    folder = tmp_path_factory.mktemp("run")
    config = folder / "trained.py"
    config.write_text(
        RUN.format(
            base=BASE,
            model='dict(name="vmamba_pico", num_classes=3, drop_path_rate=0.1)',
            classifier="mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0), label_smoothing=0.1",
            more='custom_hooks = [dict(type="EMAHook", momentum=0.1, strict_load=True)]',
            epochs=2,
            batch_size=8,
            workers=0,
            train_transform='input_size=32, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25',
            root=image_folder,
        )
    )
    assert call(train_tool, config, "--work-dir", folder / "wd") == 0
    return config, folder / "wd"


def test_training_leaves_its_files(trained):
    config, work_dir = trained
    names = {path.name for path in work_dir.iterdir()}
    assert {"epoch_1.pth", "epoch_2.pth", "last_checkpoint", "trained.py"} <= names
    assert any(name.startswith("best_accuracy_top1") for name in names)
    assert not any(".part" in name for name in names)
    losses = logged_losses(work_dir)
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    # Ours hold tensors and plain data only: no allow-list is needed to read them.
    checkpoint = torch.load(work_dir / "epoch_2.pth", weights_only=True)
    assert checkpoint["meta"]["dataset_meta"]["classes"] == ("class_0", "class_1", "class_2")
    assert "ema_state_dict" in checkpoint and "optimizer" in checkpoint and "param_schedulers" in checkpoint


def test_the_last_line_is_top1(make_config, tmp_path, capsys):
    assert call(train_tool, make_config(), "--work-dir", tmp_path / "wd") == 0
    out, err = capsys.readouterr()
    lines = out.strip().splitlines()
    assert lines[-1].startswith("held-out top-1: ") and lines[-1].endswith(" %")
    progress = [line for line in lines if "Epoch(train)" in line]
    assert len(progress) == 3 and all(word in progress[0] for word in ("lr:", "eta:", "loss:", "[1][1/3]"))
    # Environment, config and hook tables are in the log file, not on the console.
    assert "System environment" not in out and len(lines) < 20
    assert "System environment" in next((tmp_path / "wd").glob("*/*.log")).read_text()


def test_testing_gives_the_metrics_of_training(trained, tmp_path, capsys):
    config, work_dir = trained
    assert call(test_tool, config, work_dir / "epoch_2.pth", "--work-dir", tmp_path, "--out", tmp_path / "m.json") == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"held-out top-1: {metrics['accuracy/top1']:.2f} %"
    records = [json.loads(line) for line in next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    validated = [record["accuracy/top1"] for record in records if "accuracy/top1" in record]
    # Validation ran with the averaged weights; the checkpoint's state_dict is the average.
    assert metrics["accuracy/top1"] == pytest.approx(validated[-1])


def test_a_finished_run_can_be_resumed(trained, tmp_path, capsys):
    config, work_dir = trained
    shutil.copytree(work_dir, tmp_path / "wd")
    again = tmp_path / "again.py"
    shutil.copy(config, again)
    assert call(train_tool, again, "--work-dir", tmp_path / "wd", "--resume") == 0
    out = capsys.readouterr().out
    assert "Resuming from" in out and "epoch_2.pth" in out
    assert "held-out top-1: " in out.strip().splitlines()[-1]


def test_weights_of_other_classes_start_a_run_when_told_so(trained, make_config, tmp_path, capsys):
    weights = torch.load(trained[1] / "epoch_2.pth", weights_only=True)["state_dict"]
    weights |= {f"model.head.fc.{part}": torch.ones(5, *weights[f"model.head.fc.{part}"].shape[1:]) for part in PARTS}
    torch.save(weights, tmp_path / "five.pth")
    config = make_config(model='dict(name="vmamba_pico", num_classes=3)')
    words = [config, "--work-dir", tmp_path / "wd", "--cfg-options", f"load_from={tmp_path / 'five.pth'}"]
    assert call(train_tool, *words) == 2
    assert "load_classes=False" in capsys.readouterr().err
    # There is nothing to resume yet, and the weights are not forgotten for it.
    assert call(train_tool, *words, "load_classes=False", "--resume") == 0
    said = "".join(capsys.readouterr())
    assert f"starting with the weights of {tmp_path / 'five.pth'}" in said
    assert "start afresh: model.head.fc.weight, model.head.fc.bias" in said


def test_resume_passes_over_what_only_the_optimiser_can_tell(trained, tmp_path, capsys):
    config, work_dir = trained
    shutil.copytree(work_dir, tmp_path / "wd")
    again = tmp_path / "over.py"
    shutil.copy(config, again)
    newest = tmp_path / "wd" / "epoch_2.pth"
    state = torch.load(newest, weights_only=True)
    next(iter(state["optimizer"]["state"].values()))["exp_avg"] = torch.zeros(3)
    torch.save(state, newest)
    assert call(train_tool, again, "--work-dir", tmp_path / "wd", "--resume") == 0
    out = capsys.readouterr().out
    assert "Skipping it: Checkpoint" in out and "exp_avg has another shape" in out
    assert "resumed epoch: 1, iter: 3" in out and sorted(logged_losses(tmp_path / "wd")) == [1, 2, 3, 4, 5, 6]
    # Where none is left, the run does not begin anew over what is there.
    for number in (1, 2):
        torch.save(state, tmp_path / "wd" / f"epoch_{number}.pth")
    last = tmp_path / "last.py"
    shutil.copy(config, last)
    assert "epoch_2.pth' cannot be resumed from" in sentence(
        capsys, train_tool, last, "--work-dir", tmp_path / "wd", "--resume"
    )


def test_resume_takes_the_newer_of_two_runs(make_config, tmp_path, capsys):
    def words(epochs, seed, *more):
        options = ["--cfg-options", f"randomness.seed={seed}"]
        return [make_config(epochs=epochs), "--work-dir", tmp_path / "wd", *more, *options]

    assert call(train_tool, *words(2, 1)) == 0
    assert "earlier run" not in capsys.readouterr().out
    assert call(train_tool, *words(1, 2)) == 0
    assert "wd holds checkpoints of an earlier run, epoch_2.pth for example: this run is a" in capsys.readouterr().out
    assert call(train_tool, *words(2, 2, "--resume")) == 0
    said = capsys.readouterr().out
    assert "epoch_2.pth': it is of an earlier run" in said and "epoch_1.pth." in said and "resumed epoch: 1" in said
    assert torch.load(tmp_path / "wd" / "epoch_2.pth", weights_only=True)["meta"]["seed"] == 2


def test_a_tilde_in_an_output_path_is_the_home_folder(trained, image_folder, tmp_path, monkeypatch):
    config, work_dir = trained
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    image = image_folder / "val" / "class_0" / "0.png"
    assert call(predict_tool, config, work_dir / "epoch_2.pth", image, "--csv", "~/o.csv") == 0
    assert call(test_tool, config, work_dir / "epoch_2.pth", "--work-dir=~/run", "--out", "~/m.json") == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"o.csv", "run", "m.json"}
    assert not (tmp_path / "~").exists()


def test_resume_with_nothing_there_starts_anew(make_config, tmp_path, capsys):
    assert call(train_tool, make_config(), "--work-dir", tmp_path / "wd", "--resume") == 0
    assert "No readable checkpoint in" in capsys.readouterr().out


def test_amp_and_options(make_config, tmp_path):
    options = ["--cfg-options", "optim_wrapper.optimizer.lr=0.002", "train_dataloader.batch_size=12"]
    config = make_config(model='dict(name="vmamba_pico", num_classes=3)')
    assert call(train_tool, config, "--work-dir", tmp_path / "wd", "--amp", *options) == 0
    losses = logged_losses(tmp_path / "wd")
    assert len(losses) == 2 and all(0 < loss < 5 for loss in losses.values())
    dumped = (tmp_path / "wd" / config.name).read_text()
    assert "AutoAmpOptimWrapper" in dumped and "lr=0.002" in dumped


def test_predicting_from_a_run(trained, image_folder, tmp_path, capsys):
    config, work_dir = trained
    folder = tmp_path / "mixed"
    shutil.copytree(image_folder / "val" / "class_1", folder)
    (folder / "zzz.png").write_bytes(b"no image")
    words = [config, work_dir / "epoch_2.pth", folder, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"]
    assert call(predict_tool, *words) == 1
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "zzz.png' cannot be read" in err and "Traceback" not in err
    answers = json.loads((tmp_path / "a.json").read_text())
    assert len(answers) == 5 and answers[-1]["error"]
    for answer in answers[:-1]:
        assert sorted(answer["classes"]) == ["class_0", "class_1", "class_2"]
        assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert answer["probabilities"] == sorted(answer["probabilities"], reverse=True)
        assert answer["image"] in out
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 + 1 and rows[0]["class"] == answers[0]["classes"][0]


def test_an_unreadable_image_in_a_worker_process(make_config, image_folder, tmp_path, capsys):
    shutil.copytree(image_folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "class_0" / "0.png").write_bytes(b"no image")
    config = make_config(root=tmp_path / "data", workers=1)
    said = sentence(capsys, train_tool, config, "--work-dir", tmp_path / "wd")
    assert re.fullmatch(r"\S+: error: Image '\S+class_0/0.png' cannot be read: .*\n", said)


def test_published_weights_are_tested_without_a_checkpoint(make_config, tmp_path, capsys, monkeypatch):
    config = make_config()
    said = sentence(capsys, test_tool, config, "--work-dir", tmp_path / "wd")
    assert "CHECKPOINT" in said and "model.model.pretrained=True" in said

    def no_network(name, pretrained=False, **options):
        assert pretrained
        raise OSError("no network")

    monkeypatch.setattr("vssm.models.create.timm.create_model", no_network)
    words = [config, "--work-dir", tmp_path / "wd", "--cfg-options", "model.model.pretrained=True"]
    assert "weights of 'test_convnext' could not be loaded: OSError: no network" in sentence(capsys, test_tool, *words)


def test_predicting_by_name(image_folder, capsys):
    image = image_folder / "val" / "class_0" / "0.png"
    assert call(predict_tool, "--model", "test_convnext", image, "--topk", 3) == 0
    out, err = capsys.readouterr()
    assert len(out.strip().splitlines()) == 4
    assert "random weights" in err
    words = out.splitlines()[1].split("%")[1]
    assert not words.strip().isdigit(), "ImageNet's class names are missing"


def test_predicting_by_name_with_a_file(trained, image_folder, tmp_path, capsys):
    """The file of a run says how many classes there are and what they are called."""
    image, weights = image_folder / "val" / "class_0" / "0.png", trained[1] / "epoch_2.pth"
    words = ["--model", "vmamba_pico", "--checkpoint", weights, image, "--json", tmp_path / "a.json"]
    assert call(predict_tool, *words) == 0
    by_name = json.loads((tmp_path / "a.json").read_text())
    assert capsys.readouterr().err == ""
    assert call(predict_tool, trained[0], weights, image, "--json", tmp_path / "b.json") == 0
    assert set(by_name[0]["classes"]) == {"class_0", "class_1", "class_2"}
    model = Predictor.from_name("vmamba_pico", checkpoint=weights).model
    stored = torch.load(weights, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in model.state_dict().items())
    capsys.readouterr()
    said = sentence(capsys, predict_tool, "--model", "vmamba_pico", "--checkpoint", tmp_path / "none.pth", image)
    assert "none.pth' does not exist" in said
    with pytest.raises(UserError, match="exclude each other"):
        Predictor.from_name("vmamba_pico", pretrained=True, checkpoint=weights)


def test_tools_name_their_own_options(image_folder, capsys):
    image = image_folder / "val" / "class_0" / "0.png"
    said = sentence(capsys, predict_tool, "--model", "spatialmamba_tiny", "--pretrained", image)
    assert "give it with --checkpoint instead of --pretrained" in said and "pretrained_cfg_overlay" not in said
    with pytest.raises(ValueError, match=r"pretrained_cfg_overlay=dict\(file=...\)"):
        timm.create_model("spatialmamba_tiny", pretrained=True)
    # In a config, arguments of Python are keys.
    with pytest.raises(UserError) as caught, explain_config_mistakes():
        create_model("spatialmamba_tiny", pretrained=True)
    assert caught.value.for_tools is None and "pretrained_cfg_overlay" in str(caught.value)


def test_names_that_are_not_utf8(image_folder, tmp_path, monkeypatch):
    """They are answered like others, on the terminal, in JSON, from which Python gets them back, and in CSV."""
    folder = tmp_path / "mixed"
    shutil.copytree(image_folder / "val" / "class_1", folder)
    odd = os.fsdecode(os.fsencode(folder) + b"/a\xff.png")
    os.rename(folder / "0.png", odd)
    with open(os.fsencode(folder) + b"/b\xff.png", "wb") as file:
        file.write(b"no image")
    (folder / "film.mpg").write_bytes(b"\0\0\1\xb3")
    words = ["--model", "test_convnext", folder, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"]
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict"))
    assert call(predict_tool, *words) == 1
    out, err = (stream.buffer.getvalue().decode() for stream in (sys.stdout, sys.stderr))
    assert r"b\udcff.png' cannot be read" in err and "1 others are not (film.mpg)" in err
    assert r"/a\udcff.png" in out
    answers = json.loads((tmp_path / "a.json").read_text())
    assert len(answers) == 5 and sum(answer["error"] is None for answer in answers) == 4
    assert odd in {answer["image"] for answer in answers}
    assert r"/a\udcff.png" in (tmp_path / "a.csv").read_text(encoding="utf-8")


def test_an_unwritable_place_is_said_first(image_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vssm.classify.predict.Predictor.from_name", None)  # not reached
    (tmp_path / "file").write_bytes(b"")
    image = image_folder / "val" / "class_0" / "0.png"
    for option, place in (("--json", tmp_path), ("--csv", tmp_path / "file" / "a.csv")):
        said = sentence(capsys, predict_tool, "--model", "test_convnext", image, option, place)
        assert "cannot be written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def sentence(capsys, tool, *words):
    """The one sentence that a tool says about a mistake."""
    assert call(tool, *words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


def test_mistakes_are_one_sentence(trained, make_config, image_folder, tmp_path, capsys):
    config, work_dir = trained
    here = ["--work-dir", tmp_path / "wd"]
    assert "nowhere.py' does not exist" in sentence(capsys, train_tool, "nowhere.py")
    assert "did you mean 'model'" in sentence(capsys, train_tool, config, *here, "--cfg-options", "modle.name=x")
    unknown = make_config(model='dict(name="vmamba_pica", num_classes=3)')
    assert "no model 'vmamba_pica' (did you mean 'vmamba_pico'" in sentence(capsys, train_tool, unknown, *here)
    option = make_config(model='dict(name="vmamba_pico", colour=3)')
    assert "colour" in sentence(capsys, train_tool, option, *here)
    absent = make_config(root=tmp_path / "absent")
    assert "absent/train' does not exist" in sentence(capsys, train_tool, absent, *here)
    typo = make_config(classifier="label_smothing=0.1")
    assert "label_smothing" in sentence(capsys, train_tool, typo, *here)
    kind = make_config(more='val_evaluator = dict(type="Acuracy")')
    assert "Acuracy is not in the mmengine::metric registry" in sentence(capsys, train_tool, kind, *here)
    bare = make_config(classifier="label_smoothing=2.0")
    said = sentence(capsys, train_tool, bare, *here)
    assert "LabelSmoothingCrossEntropy refuses its options with a bare AssertionError" in said
    best = make_config(
        more='default_hooks["checkpoint"] = dict(type="CheckpointHook", save_best="foo", rule="greater")'
    )
    said = sentence(capsys, train_tool, best, *here)
    assert "save_best is 'foo', but the evaluation gives accuracy/top1, accuracy/top2." in said
    best = make_config(more='default_hooks["checkpoint"] = dict(type="CheckpointHook", save_best="foo")')
    assert "save_best is ['foo']: Cannot infer the rule" in sentence(capsys, train_tool, best, *here)
    lasting = make_config(workers=1, more="train_dataloader.update(persistent_workers=True)")
    assert "persistent_workers must be False" in sentence(capsys, train_tool, lasting, *here)
    assert "needs the environment variables RANK" in sentence(
        capsys, train_tool, config, *here, "--launcher", "pytorch"
    )
    assert "does not exist" in sentence(capsys, test_tool, config, tmp_path / "no.pth", *here)
    assert "does not exist" in sentence(capsys, train_tool, make_config(), *here, "--resume", tmp_path / "no.pth")


def test_foreign_checkpoints_are_one_sentence(trained, make_config, image_folder, tmp_path, capsys):
    config, work_dir = trained
    here = ["--work-dir", tmp_path / "wd"]
    image = image_folder / "val" / "class_0" / "0.png"
    foreign = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"layer.weight": torch.ones(1)}}, foreign)
    for tool, words in ((test_tool, [config, foreign, *here]), (predict_tool, [config, foreign, image])):
        said = sentence(capsys, tool, *words)
        assert "foreign.pth' cannot be loaded" in said
        assert "missing model." in said and "unexpected layer.weight" in said
    short = tmp_path / "short.pth"
    short.write_bytes((work_dir / "epoch_2.pth").read_bytes()[:-1000])
    assert "short.pth' is truncated" in sentence(capsys, test_tool, config, short, *here)
    weights = tmp_path / "weights.pth"
    torch.save({"state_dict": torch.load(work_dir / "epoch_2.pth", weights_only=True)["state_dict"]}, weights)
    again = tmp_path / "another.py"
    shutil.copy(config, again)
    said = sentence(capsys, train_tool, again, *here, "--resume", weights)
    assert "weights.pth' cannot be resumed from, it lacks meta, optimizer, message_hub" in said


@pytest.mark.slow
def test_in_a_process_of_its_own(make_config, tmp_path):
    """Started anew as a person would, where nothing has been imported; tests elsewhere save the time for that."""

    def train(*words, path=()):
        command = [sys.executable, REPO / "tools" / "train.py", *words]
        search = os.pathsep.join(map(str, [*path, REPO, REPO / "kernels"]))
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": search})

    done = train(make_config(), "--work-dir", tmp_path / "run")
    assert done.returncode == 0 and "held-out top-1: " in done.stdout and done.stderr == ""
    assert sorted(logged_losses(tmp_path / "run")) == [1, 2, 3]
    # A name that comes first on the path and fails to import stands for a package that is not installed.
    (tmp_path / "mmengine").mkdir()
    (tmp_path / "mmengine" / "__init__.py").write_text("raise ModuleNotFoundError('none', name='mmengine')")
    done = train("a.py", path=[tmp_path])
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"train.py: error: mmengine needs the [train] extra: {how_to_install('train')}\n"

"""Killed runs go on as if nothing had happened, and several processes train as one."""

import json

import pytest
import timm
import torch

from vssm.engine.run import train

from .conftest import logged_losses

pytestmark = pytest.mark.slow

# Kills its own process, as `kill -9` would, at a moment that the environment names.
KILLER = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

real = os.replace
def replace(source, target):
    if os.path.basename(str(target)) == os.environ.get("KILL_BEFORE_FILE"):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace

@HOOKS.register_module()
class Killer(Hook):
    def after_train_iter(self, runner, **kwargs):
        if runner.iter + 1 == int(os.environ.get("KILL_AFTER_ITER", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
"""
AVERAGE = 'custom_hooks = [dict(type="EMAHook", momentum=0.1, strict_load=True)]\n'
MORE = (
    AVERAGE
    + """
custom_imports = dict(imports=["vssm.engine", "killer"])
custom_hooks += [dict(type="Killer")]
"""
)


# A teacher from a file, and the run's own average from the second epoch on.
TEACHER = 'distillation=dict(teacher=dict(name="test_resnet", num_classes=3, checkpoint_path="{path}"))'
MESA = 'dict(type="MESAHook", weight=1.0, start=0.34)'


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.pth"
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), path)
    return TEACHER.format(path=path)


@pytest.fixture
def noisy_config(make_config, tmp_path, teacher):
    """Every kind of randomness at once: drop path, mixing, augmentation in two worker processes, shuffling."""
    (tmp_path / "killer.py").write_text(KILLER)

    def write(more=MORE):
        return make_config(
            model='dict(name="test_convnext", num_classes=3, drop_path_rate=0.3)',
            classifier=f"mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0), label_smoothing=0.1, {teacher}",
            more=more + f"custom_hooks += [{MESA}]\n",
            epochs=3,
            workers=2,
            train_transform='input_size=32, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5',
        )

    return write


def test_killed_and_resumed_is_uninterrupted(noisy_config, run_tool, tmp_path, capfd):
    whole = train(str(noisy_config(AVERAGE)), str(tmp_path / "whole"))
    # Nine iterations in three epochs; the eighth is in the middle of the last.
    killed = run_tool(
        "train.py", noisy_config(), "--work-dir", tmp_path / "wd", path=[tmp_path], env={"KILL_AFTER_ITER": "8"}
    )
    assert killed.returncode == -9, killed.stderr
    # A newer checkpoint that another kind of crash left half-written.
    good = (tmp_path / "wd" / "epoch_2.pth").read_bytes()
    (tmp_path / "wd" / "epoch_3.pth").write_bytes(good[: len(good) // 2])
    capfd.readouterr()
    resumed = train(str(noisy_config(AVERAGE)), str(tmp_path / "wd"), resume="auto")
    said = capfd.readouterr().out
    assert "Skipping it: Checkpoint" in said and "epoch_3.pth' is truncated" in said and "epoch_2.pth." in said
    expected, found = logged_losses(tmp_path / "whole"), logged_losses(tmp_path / "wd")
    assert sorted(found) == list(range(1, 10))
    assert found == expected and resumed == whole
    assert len({round(loss, 6) for loss in expected.values()}) == 9, "the losses do not vary, nothing was compared"


def test_killed_while_a_checkpoint_is_written(noisy_config, run_tool, tmp_path):
    killed = run_tool(
        "train.py",
        noisy_config(),
        "--work-dir",
        tmp_path / "wd",
        path=[tmp_path],
        env={"KILL_BEFORE_FILE": "epoch_2.pth"},
    )
    assert killed.returncode == -9
    names = {path.name for path in (tmp_path / "wd").iterdir()}
    assert any(name.startswith(".epoch_2.") and name.endswith(".part.pth") for name in names)
    assert "epoch_1.pth" in names and "epoch_2.pth" not in names
    resumed = run_tool("train.py", noisy_config(), "--work-dir", tmp_path / "wd", "--resume", path=[tmp_path])
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch_1.pth." in resumed.stdout
    assert sorted(logged_losses(tmp_path / "wd")) == list(range(1, 10))
    assert not list((tmp_path / "wd").glob(".*.part*")), "the leftover was not cleared"


def test_two_processes_train_and_test_as_one(make_config, run_tool, tmp_path, teacher, capfd):
    """With a teacher and the run's own average, too."""
    losses, metrics = {}, {}
    for processes in (1, 2):
        work_dir = tmp_path / f"wd{processes}"
        # No randomness but the order of the samples; 11 held-out images do not divide by 2.
        config = make_config(
            model='dict(name="vmamba_pico", num_classes=3, drop_path_rate=0.0)',
            classifier=teacher,
            more=f'custom_hooks = [dict(type="EMAHook", momentum=0.1), {MESA}]',
            epochs=2,
            batch_size=8 // processes,
        )
        if processes == 1:
            metrics[1] = train(str(config), str(work_dir))
        else:
            words = ["--work-dir", work_dir, "--launcher", "pytorch"]
            done = run_tool("train.py", config, *words, processes=processes)
            assert done.returncode == 0, done.stderr
            last = [line for line in done.stdout.splitlines() if line.startswith("held-out top-")]
            assert len(last) == 2, "each process spoke"
        terms = ("loss", "loss_base", "loss_distillation", "loss_mesa")
        losses[processes] = {key: logged_losses(work_dir, key) for key in terms}
    assert [value > 0 for value in losses[1]["loss_mesa"].values()] == [False] * 2 + [True] * 4
    for key, values in losses[1].items():
        assert len(values) == 6 and losses[2][key] == pytest.approx(values, rel=2e-4), key
    top1 = metrics[1]["accuracy/top1"]
    assert set(last) == {f"held-out top-{k}: {metrics[1][f'accuracy/top{k}']:.2f} %" for k in (1, 2)}

    words = [config, tmp_path / "wd1" / "epoch_2.pth", "--work-dir", tmp_path / "test", "--launcher", "pytorch"]
    tested = run_tool("test.py", *words, "--out", tmp_path / "metrics.json", processes=2)
    assert tested.returncode == 0, tested.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy/top1"] == pytest.approx(top1)
    # Eleven images, each counted once: the share has the denominator 11.
    assert top1 * 11 / 100 == pytest.approx(round(top1 * 11 / 100))

"""A detector and a segmentor learn real digits; killed runs go on, and two processes do as one."""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("skimage")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from vssm._cli import run  # noqa: E402
from vssm.engine import Runner, load_config, read_checkpoint  # noqa: E402
from vssm.engine.run import train  # noqa: E402

from ..engine.conftest import REPO, logged_losses, run_tool  # noqa: E402, F401
from ..engine.test_interruption import KILLER  # noqa: E402

sys.path.insert(0, str(REPO / "tools"))
import prepare_data  # noqa: E402

pytestmark = pytest.mark.slow

CONFIGS = {
    "detection": REPO / "configs" / "detection" / "mask-rcnn_vmamba-pico_digits-coco.py",
    "segmentation": REPO / "configs" / "segmentation" / "upernet_vmamba-pico_digits-ade.py",
}
DATA = {"detection": ("digits-coco", "VSSM_DIGITS_COCO"), "segmentation": ("digits-ade", "VSSM_DIGITS_ADE")}
METRIC = {"detection": "coco/bbox_mAP_50", "segmentation": "mIoU"}
_numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def digits(tmp_path_factory):
    """Both data sets, 16 images of 64 pixels to train on and 5 held out, where the configs look for them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, variable in DATA.values():
            out = tmp_path_factory.mktemp("digits") / name
            words = [name, out, "--train", 16, "--val", 5, "--size", 64, "--digit-size", 20, 36]
            assert run(prepare_data.main, [str(word) for word in words]) == 0
            patch.setenv(variable, str(out))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A short form of a config; mmengine keeps loggers by config name, so each gets its own."""
    folder = tmp_path_factory.mktemp("configs")

    def write(task: str, epochs: int, more: str = "", batch_size: int = 4) -> Path:
        path = folder / f"{task}_{os.getpid()}_{next(_numbers)}.py"
        path.write_text(
            f'_base_ = ["{CONFIGS[task]}"]\n'
            "model = dict(backbone=dict(dims=16))\n"
            f"train_dataloader = dict(batch_size={batch_size}, num_workers=0)\n"
            "val_dataloader = dict(batch_size=2, num_workers=0)\n"
            "test_dataloader = val_dataloader\n"
            f"train_cfg = dict(max_epochs={epochs}, val_interval={epochs})\n"
            f"default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval={epochs}, save_best=None))\n"
            "log_processor = dict(window_size=1)\n" + more
        )
        return path

    return write


# Held-out digits of this size take minutes; that the images seen in training are found at all takes seconds.
ON_TRAINING_IMAGES = {
    "detection": """
test_dataloader = dict(
    num_workers=0,
    dataset=dict(ann_file="annotations/instances_train2017.json", data_prefix=dict(img="train2017/")),
)
test_evaluator = dict(ann_file=_base_.data_root + "/annotations/instances_train2017.json")
""",
    # Four images by heart: a segmentor from scratch says "photograph" everywhere for its first minutes otherwise.
    "segmentation": """
train_dataloader["dataset"] = dict(indices=4)
test_dataloader = dict(
    num_workers=0,
    dataset=dict(indices=4, data_prefix=dict(img_path="images/training", seg_map_path="annotations/training")),
)
""",
}
EACH_EPOCH = "default_hooks['checkpoint']['interval'] = 1\n"
# Without class weights the loss is a mean over equally many pixels in each process. Adam would make whole steps of the
# rounding errors of small gradients. Three images do not divide by 2.
AS_ONE = """
loss = dict(loss_decode=dict(class_weight=None))
model.update(decode_head=loss, auxiliary_head=loss)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=0.01))
steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader["dataset"] = dict(indices=4, pipeline=steps)  # no random colours
val_dataloader = dict(
    num_workers=0,
    dataset=dict(indices=3, data_prefix=dict(img_path="images/training", seg_map_path="annotations/training")),
)
load_from = "{checkpoint}"
"""
CONSTANT_RATE = "param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=True)]\n"


@pytest.fixture(scope="module")
def learned(config, tmp_path_factory):
    """A short training of a task: (config, checkpoint, metrics before, metrics after)."""
    runs = {}

    def learn(task: str, epochs: int) -> tuple[Path, Path, dict, dict]:
        if task not in runs:
            path = config(task, epochs, CONSTANT_RATE + ON_TRAINING_IMAGES[task])
            cfg = load_config(str(path))
            cfg.work_dir = str(tmp_path_factory.mktemp(task))
            cfg.train_cfg.val_interval = epochs + 1
            cfg.default_hooks.logger.interval = 1000
            runner = Runner.from_cfg(cfg)
            before = runner.test()
            runner.train()
            runs[task] = path, Path(cfg.work_dir) / f"epoch_{epochs}.pth", before, runner.test()
        return runs[task]

    return learn


@pytest.mark.parametrize(("task", "epochs", "gain"), [("detection", 24, 0.1), ("segmentation", 80, 15.0)])
def test_training_raises_the_metric(task, epochs, gain, learned):
    _, _, before, after = learned(task, epochs)
    assert after[METRIC[task]] > before[METRIC[task]] + gain, (before, after)


@pytest.mark.parametrize("task", CONFIGS)
def test_killed_and_resumed_is_uninterrupted(task, config, run_tool, tmp_path, capfd):  # noqa: F811
    whole = train(str(config(task, 2, EACH_EPOCH)), str(tmp_path / "whole"))
    # Four iterations an epoch; the seventh is in the middle of the last.
    (tmp_path / "killer.py").write_text(KILLER)
    killer = "custom_imports = dict(imports=['vssm.mm', 'killer'])\ncustom_hooks = [dict(type='Killer')]\n"
    words = [config(task, 2, EACH_EPOCH + killer), "--work-dir", tmp_path / "wd"]
    killed = run_tool("train.py", *words, path=[tmp_path], env={"KILL_AFTER_ITER": "7"})
    assert killed.returncode == -9, killed.stderr
    # A newer checkpoint that another kind of crash left half-written.
    good = (tmp_path / "wd" / "epoch_1.pth").read_bytes()
    (tmp_path / "wd" / "epoch_2.pth").write_bytes(good[: len(good) // 2])
    capfd.readouterr()
    resumed = train(str(config(task, 2, EACH_EPOCH)), str(tmp_path / "wd"), resume="auto")
    said = capfd.readouterr().out
    assert "Skipping it: Checkpoint" in said and "epoch_2.pth' is truncated" in said and "epoch_1.pth." in said
    assert resumed == whole and METRIC[task] in whole
    losses = logged_losses(tmp_path / "whole")
    assert sorted(losses) == list(range(1, 9)) and len(set(losses.values())) == 8
    assert logged_losses(tmp_path / "wd") == losses


def test_two_processes_train_and_test_a_segmentor_as_one(learned, config, run_tool, tmp_path):  # noqa: F811
    more = CONSTANT_RATE + AS_ONE.format(checkpoint=learned("segmentation", 80)[1])
    one = train(str(config("segmentation", 3, more)), str(tmp_path / "wd1"))
    half = config("segmentation", 3, more, batch_size=2)
    done = run_tool("train.py", half, "--work-dir", tmp_path / "wd2", "--launcher", "pytorch", processes=2)
    assert done.returncode == 0, done.stderr
    two = {name: float(value) for name, _, value in (line.partition(": ") for line in done.stdout.splitlines()[-3:])}
    assert two == {name: pytest.approx(one[name], abs=0.02) for name in ("aAcc", "mIoU", "mAcc")}
    assert one["mIoU"] > 15
    start, *ends = (
        read_checkpoint(path)["state_dict"]
        for path in (
            learned("segmentation", 80)[1],
            tmp_path / "wd1" / "epoch_3.pth",
            tmp_path / "wd2" / "epoch_3.pth",
        )
    )
    moved = max((ends[0][name] - value).abs().max() for name, value in start.items())
    apart = max((ends[0][name] - value).abs().max() for name, value in ends[1].items())
    assert moved > 1e-3 and apart < 0.01 * moved


def test_two_processes_test_a_detector_as_one(learned, run_tool, tmp_path):  # noqa: F811
    config, checkpoint, _, one = learned("detection", 24)
    words = [config, checkpoint, "--work-dir", tmp_path / "test", "--out", tmp_path / "metrics.json"]
    done = run_tool("test.py", *words, "--launcher", "pytorch", processes=2)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text()) == pytest.approx(one)
    assert one[METRIC["detection"]] > 0

"""Going on with the schedules of the config when a run is resumed."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.optim.scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, ReduceOnPlateauLR

from vssm.engine import CheckpointError
from vssm.engine.schedules import Schedules

from .conftest import logged_losses
from .test_tools import call, train_tool

LENGTH = 5  # iterations of an epoch


def optimizer():
    config = {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.8, "momentum": 0.9}}
    return build_optim_wrapper(torch.nn.Linear(2, 2), config)


def schedules(wrapper, epochs):
    return [
        LinearLR(wrapper, start_factor=0.1, by_epoch=False, begin=0, end=LENGTH),
        CosineAnnealingLR(wrapper, T_max=epochs - 1, by_epoch=True, begin=1, end=epochs),
        MultiStepLR(wrapper, milestones=[2], gamma=0.5, by_epoch=True),
    ]


def walk(wrapper, schedulers, epochs):
    """The learning rates of all iterations, as the run's hook makes them."""
    rates = []
    for _ in range(epochs):
        for _ in range(LENGTH):
            rates.append(wrapper.param_groups[0]["lr"])
            wrapper.step()
            for one in schedulers:
                if not one.by_epoch:
                    one.step()
        for one in schedulers:
            if one.by_epoch:
                one.step()
    return rates


def resumed(epochs, done, longer, build=schedules):
    """An optimiser with schedulers as the checkpoint of another length leaves them, and what the config wanted."""
    old = optimizer()
    before = build(old, epochs)
    walk(old, before, done)
    new = optimizer()
    after = build(new, longer)
    wanted = Schedules(after)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    for one, state in zip(after, before, strict=True):
        one.load_state_dict(copy.deepcopy(state.state_dict()))
    return new, after, wanted


def test_a_longer_schedule_goes_on_as_if_it_had_been_there_from_the_start():
    wrapper, schedulers, wanted = resumed(epochs=3, done=3, longer=6)
    said = wanted.differences(schedulers)
    assert said == ["CosineAnnealingLR's end 3 -> 6", "CosineAnnealingLR's T_max 2 -> 5"]
    wanted.replay(schedulers, 3, 3 * LENGTH, "x.pth")
    whole = optimizer()
    expected = walk(whole, schedules(whole, 6), 6)
    assert walk(wrapper, schedulers, 3) == pytest.approx(expected[3 * LENGTH :], rel=1e-12)


def test_the_same_schedule_is_left_alone():
    _, schedulers, wanted = resumed(epochs=4, done=2, longer=4)
    assert wanted.differences(schedulers) == []


def test_another_learning_rate_is_another_schedule():
    _, schedulers, wanted = resumed(epochs=4, done=2, longer=4)
    for one in schedulers:
        one.base_values = [0.4]
    assert wanted.differences(schedulers)[0] == "LinearLR's first lr 0.4 -> 0.8"


def test_what_depends_on_results_is_not_replayed():
    def build(wrapper, epochs):
        return [*schedules(wrapper, epochs), ReduceOnPlateauLR(wrapper, monitor="loss")]

    _, schedulers, wanted = resumed(3, 2, 6, build)
    with pytest.raises(
        CheckpointError, match="'x.pth' cannot be resumed from .* ReduceOnPlateauLR goes by the results"
    ):
        wanted.replay(schedulers, 2, 2 * LENGTH, "x.pth")
    _, schedulers, wanted = resumed(3, 2, 3, build)
    assert wanted.differences(schedulers) == []


def test_a_longer_run_says_so_and_follows_the_new_schedule(make_config, tmp_path, capsys):
    def config(epochs, more=""):
        ends = f"param_scheduler[1].update(T_max={epochs - 1}, end={epochs})\n"
        return make_config(model='dict(name="test_convnext", num_classes=3)', epochs=epochs, more=ends + more)

    work_dir = tmp_path / "wd"
    assert call(train_tool, config(2), "--work-dir", work_dir) == 0
    capsys.readouterr()
    decay = "optim_wrapper['optimizer']['weight_decay'] = 0.01"
    assert call(train_tool, config(4, decay), "--work-dir", work_dir, "--resume") == 0
    out = capsys.readouterr().out
    assert "epoch_2.pth' was 2 epochs long; this one is 4 epochs long." in out
    assert "replaced by those of the config" in out and "CosineAnnealingLR's end 6 -> 12" in out
    assert "keeps these settings of" in out and "weight_decay=0.05" in out
    rates = logged_losses(work_dir, "lr")
    assert call(train_tool, config(4), "--work-dir", tmp_path / "whole") == 0
    whole = logged_losses(tmp_path / "whole", "lr")
    assert [rates[step] for step in range(7, 13)] == pytest.approx([whole[step] for step in range(7, 13)], rel=1e-9)

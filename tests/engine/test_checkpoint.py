"""Checkpoints of runs: their form, what training is resumed from, and starting from other classes."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from vssm.engine import CheckpointError, find_resumable, read_checkpoint
from vssm.engine.checkpoint import check_fits, check_training_state, load_weights, restore_histories, to_plain


def save(path, **more):
    torch.save({"state_dict": {"weight": torch.ones(2)}, "meta": {"epoch": 1, "iter": 1}, **more}, path)
    return path


def test_a_config_inside_a_checkpoint_is_dropped(tmp_path):
    # mmengine's resume would execute it as Python.
    path = save(tmp_path / "x.pth", meta={"epoch": 1, "config": "import os"})
    assert read_checkpoint(path)["meta"] == {"epoch": 1}


def test_missing_and_foreign(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.pth' does not exist"):
        read_checkpoint(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="text.pth"):
        read_checkpoint(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="list.pth' has no 'state_dict'"):
        read_checkpoint(tmp_path / "list.pth")
    with open(tmp_path / "pickle.pth", "wb") as file:
        pickle.dump({"a": 1}, file)
    with pytest.raises(CheckpointError, match="pickle.pth"):
        read_checkpoint(tmp_path / "pickle.pth")


def test_a_bare_state_dict_is_taken(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pth")
    assert set(read_checkpoint(tmp_path / "x.pth")["state_dict"]) == {"weight", "bias"}


def test_histories_survive_without_pickle(tmp_path):
    history = HistoryBuffer([1.5, 2.5], [1, 2], max_length=7)
    hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"best": np.float64(3)}, "resumed_keys": {"a": True}}
    torch.save(to_plain(hub), tmp_path / "x.pth")
    # No allow-list: anyone can read our files safely, with or without this package.
    plain = torch.load(tmp_path / "x.pth", weights_only=True)
    back = restore_histories(plain)
    assert back["log_scalars"]["train/loss"].data[0].tolist() == [1.5, 2.5]
    assert back["log_scalars"]["train/loss"].data[1].tolist() == [1, 2]
    assert back["runtime_info"] == {"best": 3.0}


def test_files_of_mmengine_itself_can_be_read(tmp_path):
    hub = {"log_scalars": {"loss": HistoryBuffer([1.0], [1])}, "runtime_info": {}, "resumed_keys": {}}
    path = save(tmp_path / "x.pth", message_hub=hub)
    assert read_checkpoint(path)["message_hub"]["log_scalars"]["loss"].data[0].tolist() == [1.0]


def test_the_newest_readable_one_is_found(tmp_path):
    assert find_resumable(tmp_path) == (None, [])
    assert find_resumable(tmp_path / "absent") == (None, [])
    for epoch in (2, 9, 10):
        save(tmp_path / f"epoch_{epoch}.pth")
    save(tmp_path / "best_accuracy_top1_epoch_30.pth")
    assert find_resumable(tmp_path) == (tmp_path / "epoch_10.pth", [])
    # The pointer of a killed mmengine run may name anything.
    (tmp_path / "last_checkpoint").write_text("")
    data = (tmp_path / "epoch_10.pth").read_bytes()
    (tmp_path / "epoch_10.pth").write_bytes(data[:-100])
    path, skipped = find_resumable(tmp_path)
    assert path == tmp_path / "epoch_9.pth"
    assert len(skipped) == 1 and "epoch_10.pth' is truncated" in skipped[0]


@pytest.mark.parametrize("kind", ["empty", "link to itself", "folder", "list as meta", "inert state", "no epoch"])
def test_broken_newest_checkpoints_are_passed_over(kind, tmp_path):
    save(tmp_path / "epoch_1.pth")
    path = tmp_path / "epoch_2.pth"
    state = {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}, "message_hub": HUB}
    {
        "empty": lambda: path.write_bytes(b""),
        "link to itself": lambda: path.symlink_to(path.name),
        "folder": path.mkdir,
        "list as meta": lambda: save(path, meta=[1]),
        "inert state": lambda: save(path, **state, extra=Path("x")),
        "no epoch": lambda: save(path, **state, meta={}),
    }[kind]()
    found, skipped = find_resumable(tmp_path)
    assert found == tmp_path / "epoch_1.pth" and len(skipped) == 1 and "epoch_2.pth" in skipped[0]


def test_files_of_an_earlier_and_longer_run_are_left_out(tmp_path):
    # Three epochs, then two of a new run, whose second file is damaged.
    for second, epoch in enumerate((1, 2, 3, 1, 2)):
        path = save(tmp_path / f"epoch_{epoch}.pth")
        os.utime(path, (second, second))
    found, skipped = find_resumable(tmp_path)
    assert found == tmp_path / "epoch_2.pth"
    assert len(skipped) == 1 and "epoch_3.pth': it is of an earlier run, for 'epoch_2.pth'" in skipped[0]
    path.write_bytes(path.read_bytes()[:-100])
    found, skipped = find_resumable(tmp_path)
    assert found == tmp_path / "epoch_1.pth" and "epoch_2.pth' is truncated" in skipped[1]
    assert find_resumable(tmp_path, before=tmp_path / "epoch_2.pth") == (tmp_path / "epoch_1.pth", [])
    (tmp_path / "epoch_1.pth").write_bytes(b"")
    assert find_resumable(tmp_path)[0] is None


def test_a_copied_folder_keeps_its_order(tmp_path):
    # As copied by name: the times of the files say nothing, those within do.
    for second, epoch in enumerate((10, 2, 9)):
        path = save(tmp_path / f"epoch_{epoch}.pth", meta={"epoch": epoch, "time": f"20260101_0000{epoch:02}"})
        os.utime(path, (2e9 + second, 2e9 + second))
    assert find_resumable(tmp_path) == (tmp_path / "epoch_10.pth", [])


HUB = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}


def whole_state():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer, {
        "state_dict": net.state_dict(),
        "meta": {"epoch": 1, "iter": 1, "seed": 0},
        "optimizer": optimizer.state_dict(),
        "message_hub": {**HUB, "log_scalars": {"loss": HistoryBuffer([1.0], [1])}},
        "param_schedulers": [{"last_step": 1}],
    }


def test_a_whole_training_state_is_taken():
    optimizer, state = whole_state()
    check_training_state("x.pth", state)
    check_training_state("x.pth", state, optimizer, [object()])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("optimizer"), "lacks optimizer"),
        (lambda s: s.update(meta=None), "how many epochs"),
        (lambda s: s["meta"].update(epoch="x"), "how many epochs"),
        (lambda s: s["meta"].update(seed=-1), "seed"),
        (lambda s: s.update(optimizer=[1]), "optimiser's state is damaged"),
        (lambda s: s["optimizer"].update(state={}), "moments are missing"),
        (lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)), "exp_avg has another shape"),
        (lambda s: s["optimizer"]["param_groups"][0].update(lr="fast"), "learning rate is not a number"),
        (lambda s: s["optimizer"]["param_groups"].append({"lr": 1.0, "params": []}), "parameter groups"),
        (lambda s: s.update(param_schedulers=[]), "0 schedulers, and the config has 1"),
        (lambda s: s.update(param_schedulers=5), "schedulers are damaged"),
        (lambda s: s.update(message_hub={}), "message_hub"),
        (lambda s: s["message_hub"]["log_scalars"].update(loss=5), "message_hub"),
    ],
)
def test_a_training_state_that_is_not_whole_is_refused(change, says):
    optimizer, state = whole_state()
    change(state)
    with pytest.raises(CheckpointError, match=f"x.pth' cannot be resumed from.*{says}"):
        check_training_state("x.pth", state, optimizer, [object()])


def test_a_wrapped_state_dict_is_taken(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        torch.save({"state_dict": {prefix + k: v for k, v in net.state_dict().items()}}, tmp_path / "x.pth")
        load_weights(tmp_path / "x.pth", nn.Sequential(nn.Linear(2, 2)))


def test_other_classes_are_offered():
    net = nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match=r"weight \(4, 2\) instead of \(3, 2\).*load_classes=False"):
        check_fits("f.pth", net, {"weight": torch.ones(4, 2), "bias": torch.ones(4)})
    with pytest.raises(CheckpointError) as caught:
        check_fits("f.pth", net, {"weight": torch.ones(4, 5), "bias": torch.ones(4)})
    assert "load_classes" not in str(caught.value)

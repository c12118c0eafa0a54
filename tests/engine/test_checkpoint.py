"""Checkpoints: never half-written, never executed, never loaded by halves."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from vssm.engine import CheckpointError, find_resumable, read_checkpoint
from vssm.engine.checkpoint import check_fits, restore_histories, to_plain, write_atomically


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def save(path, **more):
    torch.save({"state_dict": {"weight": torch.ones(2)}, "meta": {"epoch": 1, "iter": 1}, **more}, path)
    return path


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["file"], "the leftover was not reused"


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    path = save(tmp_path / "bomb.pth", extra=Bomb(tmp_path / "exploded"))
    with pytest.raises(CheckpointError, match="bomb.pth.*(posix|nt).mkdir.*refused"):
        read_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_a_config_inside_a_checkpoint_is_dropped(tmp_path):
    # mmengine's resume would execute it as Python.
    path = save(tmp_path / "x.pth", meta={"epoch": 1, "config": "import os"})
    assert read_checkpoint(path)["meta"] == {"epoch": 1}


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated(tmp_path, keep):
    path = save(tmp_path / "x.pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(CheckpointError, match="x.pth' is truncated"):
        read_checkpoint(path)


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


def test_keys_and_shapes_are_named():
    with pytest.raises(CheckpointError, match=r"f.pth.*missing bias; unexpected other"):
        check_fits("f.pth", nn.Linear(2, 3), {"weight": torch.ones(3, 2), "other": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"weight \(4, 2\) instead of \(3, 2\)"):
        check_fits("f.pth", nn.Linear(2, 3), {"weight": torch.ones(4, 2), "bias": torch.ones(3)})


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


class Reach:
    def __reduce__(self):
        return getattr, (torch.nn.Linear, "forward")


def test_reading_mmengine_files_opens_no_door(tmp_path):
    # mmengine's own list of safe names has getattr on it; ours answers for its record class alone.
    path = save(tmp_path / "x.pth", extra=Reach())
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(path)

"""Two processes train on tar shards, lose one of them, and end where they would have ended without the loss."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests import processes
from vssm.commands import main
from vssm.engine import read_checkpoint

from ..engine.conftest import BASE, logged_losses

pytestmark = pytest.mark.slow

# Kills its process, as `kill -9` would, once: the file that it leaves stands for the first time.
KILLER = """
import os, signal
from pathlib import Path
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Killer(Hook):
    def after_train_iter(self, runner, **kwargs):
        mark = Path(runner.work_dir).parent / "killed"
        if Path(runner.work_dir).name == "lost" and get_rank() == 1 and runner.iter + 1 == 8 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""
# Two runs, one after the other, because it is the start of a process that takes long.
SCRIPT = """
from pathlib import Path
import torch
from vssm.engine.run import train
# The second run goes on with the processes of the first.
torch.distributed.destroy_process_group = lambda: None
root = Path(__file__).parent
for name in ("whole", "lost"):
    if not (root / name / "epoch_2.pth").exists():
        train(str(root / "shards_of_digits.py"), str(root / name), resume="auto", launcher="pytorch")
"""
CONFIG = """
_base_ = ["{base}/default_runtime.py"]
custom_imports = dict(imports=["vssm.classify", "killer"])
model = dict(
    type="TimmClassifier", model=dict(name="test_resnet", num_classes=10), mixup=dict(mixup_alpha=0.8),
)
loader = dict(batch_size=10, num_workers=1, collate_fn=dict(type="default_collate"))
data = dict(type="TimmDataset", name="wds/digits", root="{root}")
train_dataloader = dict(
    **loader, drop_last=True, sampler=dict(type="ShardSampler", shuffle_size=40),
    dataset=dict(**data, split="train", transform=dict(input_size=16, is_training=True, re_prob=0.5)),
)
val_dataloader = dict(
    **loader, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**data, split="val", transform=dict(input_size=16, crop_pct=1.0)),
)
val_evaluator = dict(type="Accuracy", topk=(1,))
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=2, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=2)
val_cfg = {{}}
custom_hooks = [dict(type="EMAHook", momentum=0.1, strict_load=True), dict(type="Killer")]
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
"""


def test_a_lost_process_is_replaced_and_the_run_ends_with_the_same_weights(tmp_path):
    # 110 digits to train on, in shards of 16, and 31 others: neither divides by two.
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    for split, chosen in (("train", range(110)), ("val", range(110, 141))):
        for number in chosen:
            folder = tmp_path / "digits" / split / str(digits.target[number])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    assert not main(["prepare", "shards", str(tmp_path / "digits"), str(tmp_path / "shards"), "--samples", "16"])
    (tmp_path / "killer.py").write_text(KILLER)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "shards_of_digits.py").write_text(CONFIG.format(base=BASE, root=tmp_path / "shards"))

    run = processes.start(tmp_path / "script.py", processes=2, options=["--max-restarts=1"], path=[tmp_path])
    assert run.returncode == 0, run.stderr[-3000:]
    # Whichever is seen first: the killed process, or the one that its loss ended.
    assert "failed (exitcode: " in run.stderr and (tmp_path / "killed").exists()
    # Five iterations an epoch: the eighth is in the middle of the second.
    assert f"Resuming from {tmp_path / 'lost' / 'epoch_1.pth'}." in run.stdout
    expected, found = (logged_losses(tmp_path / name) for name in ("whole", "lost"))
    assert sorted(expected) == list(range(1, 11)) and found == expected
    whole, lost = (read_checkpoint(tmp_path / name / "epoch_2.pth")["state_dict"] for name in ("whole", "lost"))
    assert all(torch.equal(value, lost[key]) for key, value in whole.items())
    # Each of the 31 images is counted once.
    top1 = [float(line.split()[2]) for line in run.stdout.splitlines() if line.startswith("held-out top-1")]
    assert len(top1) == 2 and top1[0] == top1[1]
    assert top1[0] * 31 / 100 == pytest.approx(round(top1[0] * 31 / 100), abs=2e-3)

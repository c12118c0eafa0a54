"""Sharded training: the config builds, and two processes train with it on a CPU."""

import mmengine._strategy  # noqa: F401  (registers it)
import pytest
from mmengine.config import Config
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn

from tests import processes
from vssm.engine import TimmClassifier, load_config, read_checkpoint

from .conftest import REPO

FSDP = REPO / "configs/_base_/fsdp.py"
DIGITS = REPO / "configs/classification/vmamba-pico_digits.py"
CONFIG = """
_base_ = ["{digits}", "{fsdp}"]
import torch
# On GPUs mmengine chooses the device; the pieces are small because the model is.
strategy = dict(model_wrapper=dict(device_id=torch.device("cpu"), auto_wrap_policy=dict(min_num_params=2000)))
train_cfg = dict(max_epochs=1)
custom_hooks = []
"""
SCRIPT = """
import torch
from vssm.engine.run import train
torch.distributed.init_process_group("gloo")
optimizers = []
init = torch.optim.AdamW.__init__
def keep(self, *args, **kwargs):
    init(self, *args, **kwargs)
    optimizers.append(self)
torch.optim.AdamW.__init__ = keep
train({config!r}, work_dir={work_dir!r}, launcher="pytorch")
print("own", sum(p.numel() for group in optimizers[0].param_groups for p in group["params"]))
"""


def test_the_strategy_builds():
    cfg = Config.fromfile(FSDP)
    assert cfg.runner_type == "FlexibleRunner"
    strategy = STRATEGIES.build(cfg.strategy)
    assert type(strategy).__name__ == "FSDPStrategy" and strategy._is_full_state_dict()
    policy = dict(strategy.model_wrapper.auto_wrap_policy)
    wraps = FUNCTIONS.get(policy.pop("type"))
    large, small = nn.Linear(1024, 1024), nn.Linear(8, 8)
    for module, verdict in ((large, True), (small, False)):
        count = sum(parameter.numel() for parameter in module.parameters())
        assert wraps(module=module, recurse=False, nonwrapped_numel=count, **policy) == verdict


@pytest.mark.slow
def test_two_processes_share_a_model(tmp_path):
    """Each process optimises about half of the parameters, and the checkpoint is an ordinary one."""
    config, script, work_dir = tmp_path / "sharded.py", tmp_path / "script.py", tmp_path / "run"
    config.write_text(CONFIG.format(digits=DIGITS, fsdp=FSDP))
    script.write_text(SCRIPT.format(config=str(config), work_dir=str(work_dir)))
    run = processes.start(script, processes=2)
    assert run.returncode == 0, run.stderr[-3000:]
    own = [int(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("own ")]
    weights = read_checkpoint(work_dir / "epoch_1.pth")["state_dict"]
    total = sum(value.numel() for value in weights.values())
    assert len(own) == 2 and sum(own) < 1.2 * total and max(own) < 0.7 * total
    model = TimmClassifier(dict(load_config(str(DIGITS)).model.model))
    model.load_state_dict(weights, strict=True)

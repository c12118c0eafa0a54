"""Every config says what it means."""

import re

import pytest
import timm
import torch
from mmengine.registry import DATASETS

from vssm.engine import TimmClassifier, load_config

from .conftest import REPO

CONFIGS = sorted((REPO / "configs" / "classification").glob("*.py"))
IMAGENET = [path for path in CONFIGS if path.stem.endswith("_in1k")]


def test_every_published_vmamba_has_one():
    named = {load_config(str(path)).model.model.name for path in IMAGENET}
    ours = {name for name in timm.list_models("vmamba_*") if name != "vmamba_pico"}
    assert ours <= named


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path):
    cfg = load_config(str(path))
    family = cfg.model.model.name.replace("_", "-")
    assert path.stem.startswith(family)
    with torch.device("meta"):
        model = TimmClassifier(**{key: value for key, value in cfg.model.items() if key != "type"})
    count = sum(parameter.numel() for parameter in model.parameters())
    stated = re.search(r"([\d.]+) M parameters", path.read_text())
    if path in IMAGENET:
        assert round(count / 1e6, 2) == float(stated[1])
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        kind = DATASETS.get(loader.dataset.type)
        kind.transform_from(loader.dataset)
    steps = cfg.param_scheduler
    assert steps[0].end == steps[1].begin and steps[1].end == cfg.train_cfg.max_epochs
    assert steps[1].T_max == steps[1].end - steps[1].begin


def test_the_official_recipe():
    cfg = load_config(str(REPO / "configs/classification/vmamba-tiny-s1l8_8xb128_in1k.py"))
    assert cfg.optim_wrapper.optimizer.lr * cfg.param_scheduler[0].start_factor == pytest.approx(1e-6)
    assert cfg.custom_hooks[0].momentum == pytest.approx(1 - 0.9999)
    transform = DATASETS.get("ImageFolder").transform_from(cfg.val_dataloader.dataset)
    assert "size=256" in str(transform) and "CenterCrop" in str(transform)
    train = str(DATASETS.get("ImageFolder").transform_from(cfg.train_dataloader.dataset))
    assert "RandAugment" in train and "RandomErasing" in train and "bicubic" in train


@pytest.mark.filterwarnings("ignore:Detected call of `scheduler.step")
def test_the_schedule_of_the_learning_rate():
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    cfg = load_config(str(REPO / "configs/classification/vmamba-tiny-s1l8_8xb128_in1k.py"))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    wrapper = OptimWrapper(optimizer)
    per_epoch = 10
    schedulers = []
    for step in cfg.param_scheduler:
        step = dict(step)
        step.pop("convert_to_iter_based")
        schedulers.append(
            PARAM_SCHEDULERS.get(step.pop("type")).build_iter_from_epoch(
                optimizer=wrapper, epoch_length=per_epoch, **step
            )
        )
    rates = []
    for _ in range(300 * per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(1e-6) and max(rates) == pytest.approx(1e-3, rel=1e-3)
    assert rates.index(max(rates)) in range(20 * per_epoch - 2, 20 * per_epoch + 2)
    assert rates[160 * per_epoch] == pytest.approx((1e-3 + 1e-5) / 2, rel=0.02)
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)

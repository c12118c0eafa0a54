"""Every medical config says what it means."""

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, PARAM_SCHEDULERS

from vssm.engine import load_config

from .conftest import CONFIGS

FILES = sorted(CONFIGS.glob("*.py"))
PUBLISHED = [path for path in FILES if not path.stem.endswith(("_mni152", "_volumes"))]
SLICES = [
    path for path in FILES if "3d" not in path.stem and not path.stem.startswith("hymamba")
]  # the others: test_volumes.py


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_builds(path):
    cfg = load_config(str(path))
    cfg.model.network.pop("pretrained", None)
    model = MODELS.build(cfg.model)
    for name in ("train", "val", "test"):
        dataset = cfg[f"{name}_dataloader"].dataset
        dataset = dataset.get("dataset", dataset)
        kind = DATASETS.get(dataset.type)
        assert kind.transform_from(dataset) is not None
        assert dataset.split == name
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        METRICS.build(evaluator)
    for hook in cfg.get("custom_hooks", []):
        HOOKS.build(hook)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for scheduler in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(
            {k: v for k, v in scheduler.items() if k != "convert_to_iter_based"}, default_args=dict(optimizer=wrapper)
        )


@pytest.mark.parametrize("path", SLICES, ids=lambda path: path.stem)
def test_slices_are_prepared_alike_for_training_and_evaluation(path):
    cfg = load_config(str(path))
    transform = cfg.train_dataloader.dataset.transform
    if "type" not in cfg.test_cfg:
        assert transform.size == cfg.val_dataloader.dataset.transform.size == cfg.test_dataloader.dataset.transform.size
        assert not cfg.test_dataloader.dataset.transform.get("augment")
        return
    for loop in (cfg.val_cfg, cfg.test_cfg):
        assert (loop.size, loop.mean, loop.std) == (transform.size, transform.mean, transform.std)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_published_recipes(path):
    """Every parameter is decayed, in one group; the checkpoint is chosen on data that is not the test's."""
    cfg = load_config(str(path))
    (scheduler,) = cfg.param_scheduler
    assert "constructor" not in cfg.optim_wrapper and cfg.optim_wrapper.optimizer.type == "AdamW"
    assert scheduler.end == cfg.train_cfg.max_epochs
    assert cfg.val_dataloader.dataset.protocol == "validation"
    assert cfg.train_dataloader.dataset.type.lower() in path.stem
    assert path.stem.startswith(cfg.model.network.name.replace("_", "-"))
    if cfg.train_dataloader.dataset.type != "ISIC":
        assert cfg.test_evaluator.empty == "transunet"

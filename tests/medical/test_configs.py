"""Every medical config says what it means."""

import re

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, PARAM_SCHEDULERS

from vssm.engine import load_config

from .conftest import CONFIGS

FILES = sorted(CONFIGS.glob("*.py"))
PUBLISHED = [path for path in FILES if not path.stem.endswith("_mni152")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_everything_builds_and_has_the_stated_parameters(path):
    cfg = load_config(str(path))
    cfg.model.network.pop("pretrained", None)
    model = MODELS.build(cfg.model)
    stated = re.search(r"# (\w+): ([\d.]+) M parameters, (\d+) class", path.read_text())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (round(count / 1e6, 2), model.model.num_classes) == (float(stated[2]), int(stated[3]))
    if path in PUBLISHED:
        assert cfg.model.network.name == stated[1]
    for name in ("train", "val", "test"):
        dataset = cfg[f"{name}_dataloader"].dataset
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_slices_are_prepared_alike_for_training_and_evaluation(path):
    cfg = load_config(str(path))
    transform = cfg.train_dataloader.dataset.transform
    if "type" not in cfg.test_cfg:
        assert transform.size == cfg.val_dataloader.dataset.transform.size == cfg.test_dataloader.dataset.transform.size
        assert not cfg.test_dataloader.dataset.transform.get("augment")
        return
    for loop in (cfg.val_cfg, cfg.test_cfg):
        assert (loop.size, loop.mean, loop.std) == (transform.size, transform.mean, transform.std)


# What the recipes differ in: rate, decay, T_max, final rate, loss weights, augmentation, normalisation, size.
VM = dict(lr=1e-3, decay=1e-2, eta_min=1e-5, epochs=300, size=256, hooks=[], interval=1)
MSVM = dict(
    lr=5e-4, T_max=300, eta_min=1e-6, loss=(0.4, 0.6), epochs=300, augment="msvm_unet", scale=(0.5, 0.5), size=224
)
MSVM |= dict(hooks=["FreezeEncoderHook", "TrainLossHook"], interval=20)
RECIPES = {
    "msvm-unet-tiny_synapse": dict(MSVM, decay=1e-3),
    "msvm-unet-tiny_acdc": dict(MSVM, decay=1e-4),
    "vm-unet_synapse": dict(
        VM, T_max=100, loss=(1, 1), augment="transunet", scale=(0, 1), size=224, hooks=["TrainLossHook"], interval=20
    ),
    **{name: dict(VM, T_max=50) for name in ("vm-unet_isic17", "vm-unet_isic18")},
    **{name: dict(VM, T_max=50) for name in ("mhs-unet-4head_isic17", "mhs-unet-4head_isic18")},
}


def test_the_table_is_complete():
    assert set(RECIPES) == {path.stem for path in PUBLISHED}


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_recipes(name):
    cfg = load_config(str(CONFIGS / f"{name}.py"))
    (scheduler,) = cfg.param_scheduler
    transform, loss = cfg.train_dataloader.dataset.transform, cfg.model.loss
    found = dict(
        lr=cfg.optim_wrapper.optimizer.lr,
        decay=cfg.optim_wrapper.optimizer.weight_decay,
        T_max=scheduler.T_max,
        eta_min=scheduler.eta_min,
        epochs=cfg.train_cfg.max_epochs,
        size=transform.size,
        hooks=[hook.type for hook in cfg.get("custom_hooks", [])],
        interval=cfg.train_cfg.val_interval,
    )
    if "isic" in name:
        assert loss.type == "BCEDiceLoss" and transform.augment is True and cfg.train_dataloader.dataset.type == "ISIC"
    else:
        found |= dict(loss=(loss.ce_weight, loss.dice_weight), augment=transform.augment)
        found |= dict(scale=(transform.mean, transform.std))
        assert cfg.test_evaluator.empty == "transunet"
    assert found == RECIPES[name]
    # Every parameter is decayed, in one group; the checkpoint is chosen on data that is not the test's.
    assert "constructor" not in cfg.optim_wrapper and cfg.optim_wrapper.optimizer.type == "AdamW"
    assert scheduler.end == 300 and cfg.train_dataloader.batch_size == 32
    assert cfg.val_dataloader.dataset.protocol == "validation"
    if "FreezeEncoderHook" in found["hooks"]:
        assert cfg.custom_hooks[0].epochs == 10 and cfg.custom_hooks[1].patience == 15
    if name == "vm-unet_synapse":
        assert cfg.custom_hooks[0].save_best


@pytest.mark.parametrize(("year", "threshold"), [("17", 0.0), ("18", 0.5)])
def test_mhs_unets_threshold(year, threshold):
    cfg = load_config(str(CONFIGS / f"mhs-unet-4head_isic{year}.py"))
    assert cfg.model.network.threshold == threshold


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_figures_are_labelled(path):
    header = path.read_text().split("_base_")[0]
    assert "Published" in header and all(line.startswith("#") for line in header.strip().splitlines())

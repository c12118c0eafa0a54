"""Every config says what it means."""

import re

import pytest
import timm
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, HOOKS, PARAM_SCHEDULERS

from tests.quick import read_config
from vssm._errors import MissingExtraError
from vssm.engine import TimmClassifier, load_config
from vssm.engine.run import parse_options
from vssm.models import families

from .conftest import REPO

CONFIGS = sorted((REPO / "configs" / "classification").glob("*.py"))
IMAGENET = [path for path in CONFIGS if path.stem.endswith("_in1k")]


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_classifier_has_one(family):
    """Models that are backbones of detectors alone have no classes."""
    named = {read_config(path).model.model.name for path in IMAGENET}
    classifiers = {name for name in family.variants if timm.get_pretrained_cfg(name).num_classes}
    assert {name for name in classifiers if not name.endswith("_pico")} <= named


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_model(path):
    cfg = read_config(path)
    name = cfg.model.model.name
    assert path.stem.startswith(name.removeprefix("vssm_").replace("_", "-"))
    cfg.model.model.pretrained = False  # the recipe for fine-tuning starts from a download
    with torch.device("meta"):
        TimmClassifier(**{key: value for key, value in cfg.model.items() if key != "type"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipe(path):
    cfg = read_config(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        kind = DATASETS.get(loader.dataset.type)
        kind.transform_from(loader.dataset)
    if path in IMAGENET:
        sides = {loader.dataset.transform.input_size for loader in (cfg.train_dataloader, cfg.val_dataloader)}
        size = timm.get_pretrained_cfg(cfg.model.model.name).input_size[-1]
        assert sides == {cfg.test_dataloader.dataset.transform.input_size} == {size}
    steps = cfg.param_scheduler
    assert steps[0].end == steps[1].begin and steps[1].T_max == steps[1].end - steps[1].begin
    longer = (
        path.stem.startswith(("efficientvim", "a2mamba", "vim")) and path in IMAGENET and "stride8" not in path.stem
    )
    assert cfg.train_cfg.max_epochs - steps[1].end == (10 if longer else 0)
    hooks = [HOOKS.build(hook) for hook in cfg.get("custom_hooks", [])]
    if path in IMAGENET:
        processes, images = map(int, re.search(r"_(\d+)xb(\d+)_", path.stem).groups())
        assert cfg.train_dataloader.batch_size == images
        assert cfg.auto_scale_lr.base_batch_size == processes * images
        if path.stem.startswith(("a2mamba-nano", "plainmamba-l1")):  # those that are not averaged
            assert not hooks
        else:
            assert type(hooks[0]).__name__ == "EMAHook" and hooks[0].ema_cfg["update_buffers"]


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_averaged_and_other_teachers(path):
    """MESA begins after a quarter of the cosine, whatever the epochs at the final rate."""
    cfg = load_config(str(path))
    mesa = [hook for hook in cfg.custom_hooks if hook.type == "MESAHook"]
    epochs = cfg.param_scheduler[1].end
    assert all(hook.get("begin_epoch", hook.get("start", 0) * epochs) == epochs // 4 for hook in mesa)
    assert "-mesa_" not in path.stem or mesa
    if "distillation" in cfg.model:
        teacher = cfg.model.distillation.teacher
        assert timm.is_model(teacher.name) and teacher.pretrained and not mesa
    assert ("-dist_" in path.stem or path.stem.startswith("groupmamba")) == ("distillation" in cfg.model)


# Which parameters of the state space the official training decays: those of two dimensions there.
DECAYED = {
    "vmamba-tiny-s1l8_8xb128": {"A_logs", "dt_projs_bias"},
    "efficientvmamba-tiny_16xb128": {"A_logs", "dt_projs_bias"},
    "groupmamba-tiny_8xb128": {"A_logs", "dt_projs_bias"},
    "msvmamba-nano_8xb128": {"A_logs", "dt_projs_bias"},
    "msvmambav3-tiny_8xb128": {"A_logs", "dt_projs_bias"},
    "spatialmamba-tiny_8xb128": {"A_logs"},
    "segman-tiny_8xb512": {"A_logs", "dt_projs_bias"},
    "a2mamba-tiny_8xb256": {"A_logs"},
    "vssd-micro_8xb128": set(),
    "efficientvim-m1_8xb256": set(),
    "vim-tiny-patch16-224_8xb128": {"A_logs"},
    "plainmamba-l1_8xb256": set(),
}


@pytest.mark.parametrize("name", DECAYED)
def test_the_official_weight_decay(name):
    cfg = load_config(str(REPO / f"configs/classification/{name}_in1k.py"))
    with torch.device("meta"):
        classifier = TimmClassifier(dict(cfg.model.model))
    wrapper = build_optim_wrapper(classifier, cfg.optim_wrapper)
    decayed = {id(p) for group in wrapper.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    model = classifier.model
    state = {key: value for key, value in model.named_parameters() if key in model.no_weight_decay()}
    assert {key.rpartition(".")[2] for key, value in state.items() if id(value) in decayed} == DECAYED[name]
    for key, value in model.named_parameters():
        if key not in state:
            assert (id(value) in decayed) == (value.ndim > 1 and not key.endswith(".bias")), key


@pytest.mark.parametrize(("name", "edge"), [("efficientvim-m3_8xb256", 256), ("efficientvim-m4-dist_8xb256", 292)])
def test_images_are_tested_at_the_published_size(name, edge):
    cfg = load_config(str(REPO / f"configs/classification/{name}_in1k.py"))
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert f"size={edge}," in str(DATASETS.get("ImageFolder").transform_from(loader.dataset))


def test_efficientvmamba_has_its_own_augmentation():
    cfg = load_config(str(REPO / "configs/classification/efficientvmamba-tiny_16xb128_in1k.py"))
    transform = cfg.train_dataloader.dataset.transform
    assert (transform.auto_augment, transform.color_jitter, transform.re_prob) == ("rand-m9-mstd0.5", None, 0.25)
    assert "ColorJitter" not in str(DATASETS.get("ImageFolder").transform_from(cfg.train_dataloader.dataset))


def test_the_long_efficientvim_run_is_a_line_of_options():
    text = (REPO / "configs/classification/_base_/schedule_300e_efficientvim.py").read_text()
    words = re.search(r"--cfg-options(.*?)\n[^#]", text, re.DOTALL)[1].replace("#", "").split()
    path = REPO / "configs/classification/efficientvim-m1_8xb256_in1k.py"
    cfg = load_config(str(path), parse_options(words))
    assert cfg.param_scheduler[1].end == cfg.param_scheduler[1].begin + cfg.param_scheduler[1].T_max == 450
    assert cfg.train_cfg.max_epochs == 460 and cfg.custom_hooks[1].begin_epoch == 450 // 4


def test_the_official_recipe():
    cfg = load_config(str(REPO / "configs/classification/vmamba-tiny-s1l8_8xb128_in1k.py"))
    assert cfg.optim_wrapper.optimizer.lr * cfg.param_scheduler[0].start_factor == pytest.approx(1e-6)
    assert cfg.custom_hooks[0].momentum == pytest.approx(1 - 0.9999)
    transform = DATASETS.get("ImageFolder").transform_from(cfg.val_dataloader.dataset)
    assert "size=256" in str(transform) and "CenterCrop" in str(transform)
    train = str(DATASETS.get("ImageFolder").transform_from(cfg.train_dataloader.dataset))
    assert "RandAugment" in train and "RandomErasing" in train and "bicubic" in train


@pytest.mark.filterwarnings("ignore:Detected call of `scheduler.step")
@pytest.mark.parametrize(
    ("name", "start", "peak", "end"),
    [
        ("vmamba-tiny-s1l8_8xb128", 1e-6, 1e-3, 1e-5),
        ("msvmambav3-base_8xb128", 1e-6, 6e-4, 6e-6),
        ("efficientvmamba-tiny_16xb128", 1e-7, 2e-3, 1e-6),
        ("efficientvim-m1_8xb256", 2e-6, 2e-3, 2e-5),
        ("a2mamba-base_8xb256", 1e-6, 2e-3, 1e-5),
    ],
)
def test_the_schedule_of_the_learning_rate(name, start, peak, end):
    cfg = load_config(str(REPO / f"configs/classification/{name}_in1k.py"))
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
    for _ in range(cfg.train_cfg.max_epochs * per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(start) and max(rates) == pytest.approx(peak, rel=1e-3)
    assert rates.index(max(rates)) in range(20 * per_epoch - 2, 20 * per_epoch + 2)
    assert rates[160 * per_epoch] == pytest.approx((peak + end) / 2, rel=0.02)
    # The last epochs of a longer run, if any, keep the rate.
    assert rates[300 * per_epoch - 1 :] == pytest.approx([end] * len(rates[300 * per_epoch - 1 :]), rel=0.06)


def test_a_missing_extra_of_an_imported_module_is_named(tmp_path, monkeypatch):
    """`custom_imports` is mmengine's, which speaks of PYTHONPATH instead."""
    (tmp_path / "wants_more.py").write_text(
        "from vssm._errors import MissingExtraError\nraise MissingExtraError('this needs the [mm] extra')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "config.py"
    config.write_text("custom_imports = dict(imports=['wants_more'], allow_failed_imports=False)\n")
    with pytest.raises(MissingExtraError, match=r"config.py' cannot be read: this needs the \[mm\] extra$"):
        load_config(str(config))

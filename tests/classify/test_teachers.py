"""Distillation from a trained teacher, and MESA's agreement with the run's own average."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.nn import functional as F

from vssm.classify import DistillationLoss, MESAHook, TimmClassifier
from vssm.engine import ConfigError, Runner, load_config, read_checkpoint
from vssm.models.create import ModelError

from ..parity import load

ONE_HEAD = dict(name="test_convnext", num_classes=3)
TWO_HEADS = dict(
    name="deit_tiny_distilled_patch16_224",
    num_classes=3,
    img_size=32,
    patch_size=8,
    embed_dim=24,
    depth=1,
    num_heads=2,
)
# With batch norm: it would show whether the teacher trains.
TEACHER = dict(name="test_resnet", num_classes=3)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("hard_alpha05", dict(kind="hard", alpha=0.5)),
        ("soft_alpha05_tau1", dict(kind="soft", alpha=0.5, tau=1.0)),
        ("soft_alpha01_tau3", dict(kind="soft", alpha=0.1, tau=3.0)),
        ("none", dict(alpha=0.0)),
    ],
)
def test_the_official_numbers(key, options):
    head, dist, teacher, targets = (
        torch.from_numpy(np.random.RandomState(seed).standard_normal((4, 10)).astype(np.float32))
        for seed in (21, 22, 23, 24)
    )
    expected = load("groupmamba")["losses"]["distillation"]
    base = SoftTargetCrossEntropy()
    assert base(head, targets.softmax(-1)).item() == pytest.approx(expected["base"], abs=2e-7)
    terms = DistillationLoss(base, **options)(head, dist, teacher, targets.softmax(-1))
    assert set(terms) == {"loss_base", "loss_distillation"}
    assert sum(terms.values()).item() == pytest.approx(expected[key], abs=2e-7)


@pytest.mark.parametrize("model", [ONE_HEAD, TWO_HEADS], ids=["one head", "two heads"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_loss_by_hand(model, kind, batch):
    images, labels = batch
    student = TimmClassifier(model, distillation=dict(teacher=TEACHER, kind=kind, alpha=0.3, tau=2.0))
    losses = student(images, labels, "loss")
    outputs = student.model(images)
    head, dist = outputs if model is TWO_HEADS else (outputs, outputs)
    with torch.no_grad():
        teacher = student._teacher.model(images)
    if kind == "hard":
        term = F.cross_entropy(dist, teacher.argmax(1))
    else:
        p, q = (teacher / 2).softmax(1), (dist / 2).softmax(1)
        term = (p * (p / q).log()).sum() / (4 * 3) * 2**2
    torch.testing.assert_close(losses["loss_base"], 0.7 * F.cross_entropy(head, labels))
    torch.testing.assert_close(losses["loss_distillation"], 0.3 * term)


def test_the_teacher_sees_the_mixed_images(batch):
    student = TimmClassifier(ONE_HEAD, mixup=dict(mixup_alpha=0.8), distillation=dict(teacher=TEACHER))
    student.init_weights()
    seen = []
    for model in (student.model, student._teacher.model):
        model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    student(*batch, "loss")
    assert len(seen) == 2 and torch.equal(*seen) and not torch.equal(seen[0], batch[0])


@pytest.mark.parametrize("model", [ONE_HEAD, TWO_HEADS], ids=["one head", "two heads"])
def test_a_step_changes_the_student_alone(model, batch):
    torch.manual_seed(0)
    student = TimmClassifier(model, distillation=dict(teacher=TEACHER))
    student.init_weights()
    wrapper = build_optim_wrapper(
        student,
        dict(
            type="OptimWrapper",
            constructor="TimmOptimWrapperConstructor",
            optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.05),
        ),
    )
    optimised = {id(p) for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in student.model.parameters()}
    teacher = student._teacher.model
    before, taught = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    log = student.train().train_step(dict(inputs=batch[0], labels=batch[1]), wrapper)
    assert log["loss"] == pytest.approx(float(log["loss_base"] + log["loss_distillation"]))
    after = student.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in after if "head" in key and key.endswith("bias"))
    assert not teacher.training and all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(taught[key], value) for key, value in teacher.state_dict().items())


def test_the_teacher_is_no_part_of_the_student():
    plain, taught = TimmClassifier(ONE_HEAD), TimmClassifier(ONE_HEAD, distillation=dict(teacher=TEACHER))
    taught.init_weights()
    assert set(taught.state_dict()) == set(plain.state_dict())
    assert len(list(taught.parameters())) == len(list(plain.parameters()))
    assert copy.deepcopy(taught)._teacher is taught._teacher


def test_the_teacher_follows_the_images(batch, monkeypatch):
    # This device exists on any machine; only autocast does not know it.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    student = TimmClassifier(ONE_HEAD, distillation=dict(teacher=TEACHER)).to("meta")
    student.init_weights()
    assert next(student._teacher.model.parameters()).device.type == "cpu"
    losses = student(*(x.to("meta") for x in batch), "loss")
    assert next(student._teacher.model.parameters()).device.type == "meta"
    assert losses["loss_distillation"].device.type == "meta"


def test_the_teacher_runs_in_float32(batch):
    student = TimmClassifier(ONE_HEAD, distillation=dict(teacher=TEACHER))
    student.init_weights()
    expected = student._teacher(batch[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert student.model(batch[0]).dtype == torch.bfloat16
        assert torch.equal(student._teacher(batch[0]), expected)


@pytest.fixture
def downloads(monkeypatch):
    """Has timm find published weights, of random values, for every model."""
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: real(name, **options))


def test_a_published_teacher_keeps_its_classifier(downloads):
    student = TimmClassifier(ONE_HEAD, distillation=dict(teacher=dict(TEACHER, pretrained=True)))
    with pytest.raises(ModelError, match="weights of the teacher 'test_resnet' are for 1000 classes, not for 3"):
        student.init_weights()


def test_published_teachers_get_the_scale_they_know(batch, downloads):
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))):
        teacher = dict(TEACHER, pretrained=True, pretrained_cfg_overlay=dict(mean=mean, std=std, num_classes=3))
        student = TimmClassifier(ONE_HEAD, distillation=dict(teacher=teacher))
        student.init_weights()
        pixels = batch[0] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        pixels = pixels + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        as_it_wants = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        expected = student._teacher.model(as_it_wants)
        torch.testing.assert_close(student._teacher(batch[0]), expected, rtol=1e-4, atol=1e-5)


def test_two_heads_without_a_teacher_give_one_output(batch):
    student = TimmClassifier(TWO_HEADS)
    student.model.set_distilled_training(True)
    assert isinstance(student.model(batch[0]), tuple)
    student = TimmClassifier(TWO_HEADS)
    assert student.model(batch[0]).shape == (4, 3)
    assert set(student(*batch, "loss")) == {"loss"}


def test_training_starts_from_the_weights_that_timm_made():
    student = TimmClassifier(dict(name="vmamba_pico", num_classes=3))
    before = copy.deepcopy(student.state_dict())
    student.init_weights()
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())


def test_mistakes_in_distillation_are_one_sentence():
    def start(**distillation):
        TimmClassifier(ONE_HEAD, distillation=distillation).init_weights()

    with pytest.raises(ModelError, match="teacher 'test_resnet' has 1000 classes, but the model has 3"):
        start(teacher=dict(name="test_resnet"))
    with pytest.raises(ModelError, match="no model 'test_resnat'.*'test_resnet'"):
        start(teacher=dict(name="test_resnat"))
    with pytest.raises(ModelError, match="weights of 'vmamba_pico' could not be loaded"):
        start(teacher=dict(name="vmamba_pico", pretrained=True))
    for teacher in ({}, {"teacher": {"num_classes": 3}}):
        with pytest.raises(ModelError, match="teacher lacks 'name'"):
            start(**teacher)
    with pytest.raises(ConfigError, match="model.distillation has the unknown option 'alpa'.*'alpha'"):
        start(teacher=TEACHER, alpa=0.5)
    with pytest.raises(ConfigError, match="'hard' and 'soft', not 'warm'"):
        start(teacher=TEACHER, kind="warm")
    with pytest.raises(ConfigError, match="alpha from 0 to 1, not 2"):
        start(teacher=TEACHER, alpha=2)
    with pytest.raises(ConfigError, match="positive tau, not 0"):
        start(teacher=TEACHER, tau=0)


def test_mesa_by_hand(batch):
    torch.manual_seed(0)
    images, labels = batch
    student, average = TimmClassifier(ONE_HEAD), TimmClassifier(ONE_HEAD)
    student.set_mesa(average)
    waiting = student(images, labels, "loss")
    assert set(waiting) == {"loss_base", "loss_mesa"} and waiting["loss_mesa"] == 0
    student.mesa_weight = 1.5
    losses = student(images, labels, "loss")
    expected = -(average(images).softmax(1) * student(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["loss_mesa"], 1.5 * expected)
    torch.testing.assert_close(losses["loss_base"], F.cross_entropy(student(images), labels))
    sum(losses.values()).backward()
    assert all(p.grad is None for p in average.parameters()) and not average.training
    assert all(p.grad is not None for p in student.parameters())
    assert set(student.state_dict()) == set(TimmClassifier(ONE_HEAD).state_dict())
    student.set_mesa(None)
    assert set(student(images, labels, "loss")) == {"loss"}


def test_mesa_and_distillation_together(batch):
    torch.manual_seed(0)
    student = TimmClassifier(TWO_HEADS, distillation=dict(teacher=TEACHER))
    average = copy.deepcopy(student)
    student.set_mesa(average, 1.0)
    losses = student(*batch, "loss")
    probabilities = average.eval()(batch[0]).softmax(1)
    mean = sum(student.model(batch[0])) / 2
    torch.testing.assert_close(losses["loss_mesa"], F.cross_entropy(mean, probabilities))
    assert set(losses) == {"loss_base", "loss_distillation", "loss_mesa"}


def test_mistakes_in_mesa_are_one_sentence(make_config, tmp_path):
    for options, message in (
        (dict(weight=0), "positive weight, not 0"),
        (dict(start=1.0), "from 0 to below 1, not 1.0"),
        (dict(begin_epoch=-1), "begin_epoch is 0 or more, not -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            MESAHook(**options)
    cfg = load_config(str(make_config(more='custom_hooks = [dict(type="MESAHook")]')))
    cfg.work_dir = str(tmp_path / "wd")
    with pytest.raises(ConfigError, match="EMAHook"):
        Runner.from_cfg(cfg).train()
    hook = MESAHook()
    with pytest.raises(ConfigError, match="TimmClassifier, not with Linear"):
        hook.before_train(type("R", (), dict(hooks=[HOOKS.get("EMAHook")()], model=nn.Linear(1, 1))))


@HOOKS.register_module()
class Watch(Hook):
    """Notes each iteration's losses, and the average's weights before it."""

    def __init__(self):
        self.losses, self.averages, self.raw = [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        average = next(hook for hook in runner.hooks if type(hook).__name__ == "EMAHook").ema_model.module
        self.averages.append(copy.deepcopy(average.state_dict()))
        self.raw.append(copy.deepcopy(runner.model.state_dict()))
        self.batch = data_batch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: float(value) for key, value in outputs.items()})


# Batch norm, whose statistics are averaged too.
RUN = dict(
    model='dict(name="test_resnet", num_classes=3)',
    classifier='distillation=dict(teacher=dict(name="test_convnext", num_classes=3))',
    epochs=4,
    more="""
custom_hooks = [
    dict(type="EMAHook", momentum=0.1, update_buffers=True, strict_load=True),
    dict(type="MESAHook", weight=0.5, {start}),
    dict(type="Watch"),
]
""",
)


def run(make_config, work_dir, start="start=0.5", **options):
    made = make_config(**{**RUN, "more": RUN["more"].format(start=start), **options})
    cfg = load_config(str(made))
    cfg.work_dir = str(work_dir)
    return cfg


def watched(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner, next(hook for hook in runner.hooks if isinstance(hook, Watch))


@pytest.mark.parametrize(("start", "first"), [("start=0.5", 6), ("begin_epoch=1", 3), ("start=0.0", 0)])
def test_mesa_in_a_run(make_config, tmp_path, start, first):
    runner, watch = watched(run(make_config, tmp_path / "wd", start, classifier=""))
    terms = [losses["loss_mesa"] for losses in watch.losses]
    assert len(terms) == 12 and all(term == 0 for term in terms[:first]) and all(term > 0 for term in terms[first:])
    assert all(losses["loss"] == pytest.approx(losses["loss_base"] + losses["loss_mesa"]) for losses in watch.losses)
    # The last iteration once more, by hand: the average as it was, in eval mode, on the same images.
    student, average = (TimmClassifier(dict(name="test_resnet", num_classes=3)) for _ in range(2))
    student.load_state_dict(watch.raw[-1])
    average.load_state_dict(watch.averages[-1])
    assert not torch.equal(watch.raw[-1]["model.fc.weight"], watch.averages[-1]["model.fc.weight"])
    images = watch.batch["inputs"]
    with torch.no_grad():
        expected = 0.5 * F.cross_entropy(student.train()(images), average.eval()(images).softmax(1))
    assert terms[-1] == pytest.approx(expected.item(), rel=1e-5)
    assert runner.model._average is None


def test_resumed_with_teacher_and_average_is_uninterrupted(make_config, tmp_path):
    _, whole = watched(run(make_config, tmp_path / "whole"))
    cfg = run(make_config, tmp_path / "wd")
    cfg.default_hooks.checkpoint.max_keep_ckpts = 4
    watched(cfg)
    for epoch in (1, 3):  # before and after MESA's start
        cfg.resume, cfg.load_from = True, str(tmp_path / "wd" / f"epoch_{epoch}.pth")
        cfg.work_dir = str(tmp_path / f"from_{epoch}")
        _, resumed = watched(cfg)
        assert resumed.losses == whole.losses[3 * epoch :]
    checkpoint = read_checkpoint(tmp_path / "wd" / "epoch_4.pth")
    student = timm.create_model("test_resnet", num_classes=3)
    keys = {f"model.{key}" for key in student.state_dict()}
    assert set(checkpoint["state_dict"]) == keys
    assert set(checkpoint["ema_state_dict"]) == {f"module.{key}" for key in keys} | {"steps"}
    assert len(checkpoint["optimizer"]["state"]) == len(list(student.parameters()))
    assert not torch.equal(
        checkpoint["state_dict"]["model.bn1.running_mean"],
        checkpoint["ema_state_dict"]["module.model.bn1.running_mean"],
    )


def test_testing_needs_no_teacher(make_config, tmp_path):
    cfg = run(
        make_config, tmp_path / "wd", classifier='distillation=dict(teacher=dict(name="vmamba_pico", pretrained=True))'
    )
    assert "accuracy/top1" in Runner.from_cfg(cfg).test()
    with pytest.raises(ModelError, match="weights of 'vmamba_pico'"):
        Runner.from_cfg(cfg).train()

"""Losses against their formulas, augmentation, hooks, schedules and volume inference."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from mmengine.runner import Runner  # noqa: F401 (registers mmengine's schedulers)
from scipy import ndimage
from torch import nn

from vssm.engine import ConfigError
from vssm.medical.hooks import FreezeEncoderHook, TrainLossHook
from vssm.medical.inference import predict_volume
from vssm.medical.losses import BCEDiceLoss, CEDiceLoss
from vssm.medical.nifti import from_slices, slice_spacing, to_slices, window_intensities
from vssm.medical.transforms import (
    MSVM_UNET_OPERATIONS,
    MSVMUNetAugment,
    SkinTransform,
    SliceTransform,
    TransUNetAugment,
    resize,
)


def problem(classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, 9, 7, generator=generator, dtype=torch.float64)
    # The last class is absent.
    label = torch.randint(max(classes - 1, 2), (3, 9, 7), generator=generator)
    return logits, label


@pytest.mark.parametrize(("ce", "dice"), [(0.4, 0.6), (1.0, 1.0)])
def test_ce_dice_is_the_published_formula(ce, dice):
    logits, label = problem(5)
    p = logits.softmax(1)
    g = torch.nn.functional.one_hot(label, 5).movedim(-1, 1).double()
    picked = p.gather(1, label[:, None]).log()
    terms = [
        1 - (2 * (p[:, k] * g[:, k]).sum() + 1e-5) / ((p[:, k] ** 2).sum() + (g[:, k] ** 2).sum() + 1e-5)
        for k in range(5)
    ]
    expected = -ce * picked.mean() + dice * torch.stack(terms).mean()
    loss = CEDiceLoss(ce_weight=ce, dice_weight=dice)(logits.float(), label)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)


def test_bce_dice_is_the_published_formula():
    logits, label = problem(1)
    p, t = logits[:, 0].sigmoid(), label.double()
    bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    sums = [(2 * (p[i] * t[i]).sum() + 1) / (p[i].sum() + t[i].sum() + 1) for i in range(3)]
    expected = bce + 1 - torch.stack(sums).mean()
    assert BCEDiceLoss()(logits.float(), label).item() == pytest.approx(expected.item(), rel=2e-6)


@pytest.mark.parametrize(("kind", "classes"), [(CEDiceLoss, 4), (BCEDiceLoss, 1)])
def test_losses_in_half_precision(kind, classes):
    logits, label = problem(classes)
    logits = (20 * logits).to(torch.bfloat16).requires_grad_()
    loss = kind()(logits, label)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(logits.grad).all()


def picture(side=48):
    """Quarters of different brightness, which are also the label."""
    label = np.zeros((side, side), dtype=np.uint8)
    label[8:24, 8:24], label[24:40, 8:24], label[8:24, 24:40] = 1, 2, 3
    return ndimage.gaussian_filter(label.astype(np.float32), 0.5) / 3, label


@pytest.mark.parametrize("kind", [TransUNetAugment, MSVMUNetAugment])
def test_augmentation_moves_image_and_label_alike(kind):
    image, label = picture()
    augment, rng = kind(), np.random.default_rng(0)
    seen, close = set(), []
    for _ in range(60):
        moved, truth = augment(image, label, rng)
        assert moved.shape == truth.shape == image.shape
        assert moved.dtype == np.float32 and truth.dtype == np.uint8 and set(np.unique(truth)) <= {0, 1, 2, 3}
        seen.add(truth.tobytes())
        inside = ndimage.minimum_filter(truth, 5) == ndimage.maximum_filter(truth, 5)
        close.append(np.corrcoef(moved[inside], truth[inside])[0, 1] if len(np.unique(truth[inside])) > 1 else np.nan)
    assert len(seen) > 12
    # Noise of 1.3 on an image of 0 to 1 hides it in some; in most the two still fit.
    assert np.nanmedian(close) > 0.97


def test_transunets_augmentation_by_its_draws():
    image, label = picture()
    random = np.random.default_rng(1)
    kinds = {"turned": 0, "tilted": 0, "as it was": 0}
    square = [np.flip(np.rot90(label, k), axis) for k in range(4) for axis in (0, 1)]
    for _ in range(400):
        truth = TransUNetAugment()(image, label, random)[1]
        if any(np.array_equal(truth, one) for one in square):
            kinds["turned"] += 1
        else:
            kinds["as it was" if np.array_equal(truth, label) else "tilted"] += 1
    assert 160 < kinds["turned"] < 240 and 70 < kinds["tilted"] < 130 and 70 < kinds["as it was"] < 135


@pytest.mark.parametrize("number", range(10))
def test_each_of_msvm_unets_operations(number):
    image, label = picture()
    operation = MSVM_UNET_OPERATIONS[number]
    changed = [operation(image, label, np.random.default_rng(seed)) for seed in range(6)]
    assert any(not np.array_equal(pixels, image) for pixels, _ in changed)
    keeps_label = number in (2, 3, 4)
    assert keeps_label == all(np.array_equal(truth, label) for _, truth in changed)
    if number == 2:
        assert np.std(changed[0][0] - image) == pytest.approx(1.275, rel=0.05)


def test_slice_transform():
    image, label = picture()
    transform = SliceTransform(24, mean=0.5, std=0.5)
    pixels, truth = transform(image, label, np.random.default_rng(0))
    assert pixels.shape == (1, 24, 24) and truth.shape == (24, 24) and truth.dtype == torch.int64
    np.testing.assert_allclose(pixels[0], (ndimage.zoom(image, 0.5, order=3) - 0.5) / 0.5, atol=1e-6)
    assert np.array_equal(truth, ndimage.zoom(label, 0.5, order=0))
    with pytest.raises(ConfigError, match="one of .*'transunet'.* or None, not 'strong'"):
        SliceTransform(augment="strong")


def test_skin_transform_stretches_each_image():
    random = np.random.default_rng(0)
    photo = random.integers(40, 90, (30, 40, 3)).astype(np.uint8)
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[10:20, 10:30] = 255
    image, truth = SkinTransform(32)(photo, mask, random)
    # A mean and a deviation that are taken off before cancel out, so the official constants do not matter.
    other, _ = SkinTransform(32)((photo - 157.561) / 26.706, mask, random)
    assert torch.allclose(image, other, atol=1e-3)
    assert 0 <= image.min() < 60 and 200 < image.max() <= 255
    assert truth.float().mean() == pytest.approx(200 / 1200, abs=0.03)
    assert torch.isfinite(SkinTransform(32)(np.full_like(photo, 7), mask, random)[0]).all()
    turned = [SkinTransform(32, augment=True)(photo, mask, random)[1] for _ in range(12)]
    assert len({tuple(one.flatten().tolist()) for one in turned}) > 6


class Threshold(nn.Module):
    """A segmentor that answers 1 where the first channel is positive."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, image, mode):
        assert mode == "predict" and not torch.is_grad_enabled()
        self.batches.append(tuple(image.shape))
        return [{"prediction": (one > 0).long()} for one in image[:, 0]]


def test_volume_inference_slice_by_slice():
    random = np.random.default_rng(0)
    volume = ndimage.gaussian_filter(random.standard_normal((5, 30, 44)), (0, 3, 3)).astype(np.float32)
    model = Threshold()
    label = predict_volume(model, volume, SliceTransform(16, mean=0.1, std=2.0), batch_size=2)
    assert model.batches == [(2, 1, 16, 16), (2, 1, 16, 16), (1, 1, 16, 16)]
    assert label.shape == volume.shape and label.dtype == np.uint8
    for found, pixels in zip(label, volume, strict=True):
        small = ndimage.zoom(pixels, (16 / 30, 16 / 44), order=3) > 0.1
        assert np.array_equal(found, ndimage.zoom(small.astype(np.uint8), (30 / 16, 44 / 16), order=0))


def test_resizing_to_the_same_size_does_nothing():
    image, _ = picture()
    assert resize(image, image.shape, 3) is image


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_come_back_in_the_files_orientation(axis):
    nibabel = pytest.importorskip("nibabel")
    random = np.random.default_rng(0)
    volume = random.standard_normal((4, 5, 6)).astype(np.float32)
    affine = np.array([[0, -2.0, 0, 1], [0, 0, 3.0, 2], [-0.5, 0, 0, 3], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(volume, affine)
    slices = to_slices(volume, image, axis)
    assert np.array_equal(from_slices(slices, image, axis), volume)
    # File axes are superior, right, anterior, with sizes 0.5, 2 and 3 mm.
    sizes = {0: (2.0, 0.5, 3.0), 1: (3.0, 0.5, 2.0), 2: (0.5, 3.0, 2.0)}
    assert slice_spacing(image, axis) == sizes[axis]
    lengths = {2.0: 5, 3.0: 6, 0.5: 4}
    assert slices.shape == tuple(lengths[size] for size in sizes[axis])


def test_windows():
    volume = np.array([-1000.0, -125.0, 75.0, 275.0, 900.0], dtype=np.float32)
    assert window_intensities(volume, None) is volume
    np.testing.assert_allclose(window_intensities(volume, (-125, 275)), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(window_intensities(volume[:2], "extremes"), [-1, 1])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.encoder, self.model.head = nn.Linear(2, 2), nn.Linear(2, 1)


def test_the_encoder_is_frozen_by_epoch():
    runner = SimpleNamespace(model=Net(), epoch=0)
    hook = FreezeEncoderHook(epochs=2)
    hook.before_train(runner)
    for epoch, trained in ((0, False), (1, False), (2, True), (9, True)):
        runner.epoch = epoch
        hook.before_train_epoch(runner)
        assert all(p.requires_grad == trained for p in runner.model.model.encoder.parameters())
        assert all(p.requires_grad for p in runner.model.model.head.parameters())
    runner.epoch = 1  # a run that stops inside leaves nothing frozen
    hook.before_train_epoch(runner)
    hook.after_train(runner)
    assert all(p.requires_grad for p in runner.model.parameters())
    with pytest.raises(ConfigError, match="no module named 'trunk' in Net"):
        FreezeEncoderHook(name="trunk").before_train(runner)
    with pytest.raises(ConfigError, match="0 or more, not -1"):
        FreezeEncoderHook(epochs=-1)


def test_frozen_parameters_do_not_decay():
    runner = SimpleNamespace(model=Net(), epoch=0)
    hook = FreezeEncoderHook(epochs=1)
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    optimizer = torch.optim.AdamW(runner.model.parameters(), lr=0.1, weight_decay=0.5)
    before = runner.model.model.encoder.weight.clone()
    net = runner.model.model
    net.head(net.encoder(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    assert torch.equal(net.encoder.weight, before)


def test_selection_and_early_stopping_by_training_loss():
    info, saved = {}, []
    runner = SimpleNamespace(
        message_hub=SimpleNamespace(get_info=lambda key, default: info.get(key, default), update_info=info.__setitem__),
        save_checkpoint=lambda folder, name, **kwargs: saved.append((name, info["lowest_train_loss"])),
        train_loop=SimpleNamespace(stop_training=False),
        logger=SimpleNamespace(info=lambda text: None),
        work_dir="x",
    )
    stopped = []
    for losses in ((3.0, 1.0), (1.0, 1.0), (5.0, 1.0), (2.0, 2.0)):
        hook = TrainLossHook(save_best=True, patience=2)  # anew each time: what it knows is in the message hub
        hook.before_train_epoch(runner)
        for loss in losses:
            hook.after_train_iter(runner, 0, outputs={"loss": torch.tensor(loss)})
        hook.after_train_epoch(runner)
        stopped.append(runner.train_loop.stop_training)
    assert saved == [("best_train_loss.pth", 2.0), ("best_train_loss.pth", 1.0)]
    assert stopped == [False, False, False, True]


def test_the_oscillating_cosine():
    """T_max 50 over 300 epochs: down and up three times, as the official schedule (PyTorch's) does."""
    rates = {}
    for name in ("ours", "torch"):
        parameter = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([parameter], lr=1e-3)
        if name == "ours":
            cfg = dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=True, begin=0, end=300, T_max=50)
            scheduler = PARAM_SCHEDULERS.build(cfg, default_args=dict(optimizer=optimizer))
        else:
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-5)
        rates[name] = []
        for _ in range(300):
            rates[name].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    np.testing.assert_allclose(rates["ours"], rates["torch"], rtol=1e-6)
    assert np.argmin(rates["ours"][:100]) == 50 and rates["ours"][100] == pytest.approx(1e-3)
    assert rates["ours"][250] == pytest.approx(1e-5)


def test_losses_are_found_by_name():
    assert isinstance(MODELS.build(dict(type="CEDiceLoss", ce_weight=1.0, dice_weight=1.0)), CEDiceLoss)

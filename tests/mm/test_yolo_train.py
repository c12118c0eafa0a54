"""What Mamba YOLO's training does otherwise than mmdet's: augmentation, warm-up, the letterbox."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from torch import nn

from vssm.mm import CentredAffine, GainJitter, MosaicOffHook, YOLOWarmupHook

from .test_configs import BY_STEM, build_quickly, read, sample, shrink


def scene(height, width, box):
    """A white rectangle on black, and its box."""
    left, top, right, bottom = box
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[top:bottom, left:right] = 255
    return dict(
        img=image,
        gt_bboxes=HorizontalBoxes(torch.tensor([box], dtype=torch.float32)),
        gt_bboxes_labels=np.array([0]),
        gt_ignore_flags=np.array([False]),
    )


@pytest.mark.parametrize(
    ("shape", "scale", "shift", "box", "want"),
    [
        ((40, 60), 1.0, 0.0, (10, 10, 30, 20), (12, 22, 32, 32)),  # grey around a smaller image
        ((128, 128), 1.0, 0.0, (50, 40, 70, 80), (18, 8, 38, 48)),  # the middle of a mosaic
        ((128, 128), 0.5, 0.0, (40, 40, 80, 100), (20, 20, 40, 50)),  # all of it
        ((64, 64), 2.0, 0.0, (30, 30, 40, 50), (28, 28, 48, 64)),  # cut at the border
        ((64, 64), 1.0, 0.25, (20, 20, 30, 30), (36, 36, 46, 46)),
        ((41, 59), 1.0, 0.0, (10, 10, 30, 20), (12.5, 21.5, 32.5, 31.5)),  # odd sizes
    ],
)
def test_boxes_go_where_the_pixels_go(shape, scale, shift, box, want, monkeypatch):
    draws = iter([scale, shift, shift])
    monkeypatch.setattr("vssm.mm.yolo_train.random.uniform", lambda low, high: next(draws))
    result = CentredAffine((64, 64), scaling_ratio_range=(0.5, 2.0)).transform(scene(*shape, box))
    assert result["img"].shape == (64, 64, 3) and result["img_shape"] == (64, 64)
    assert result["gt_bboxes"].tensor[0].tolist() == pytest.approx(want)
    rows, columns = (result["img"][..., 0] > 200).nonzero()
    white = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert white == pytest.approx(want, abs=1)


def test_objects_that_leave_the_image_go():
    result = CentredAffine((64, 64), (1.0, 1.0), 0.0).transform(scene(128, 128, (0, 0, 20, 20)))
    assert len(result["gt_bboxes"]) == len(result["gt_bboxes_labels"]) == 0


def test_colours_change_by_factors(monkeypatch):
    image = np.full((2, 2, 3), (10, 100, 200), dtype=np.uint8)
    monkeypatch.setattr("vssm.mm.yolo_train.np.random.uniform", lambda *_: np.array([0.0, 0.0, -1.0]))
    darker = GainJitter((0.0, 0.0, 0.4)).transform(dict(img=image))["img"]
    assert np.abs(darker[0, 0].astype(int) - (6, 60, 120)).max() <= 2
    monkeypatch.setattr("vssm.mm.yolo_train.np.random.uniform", lambda *_: np.array([0.0, -1.0, 0.0]))
    grey = GainJitter((0.0, 1.0, 0.0)).transform(dict(img=image))["img"]
    assert grey[0, 0].tolist() == [200, 200, 200]


def test_warm_up():
    """Biases from above, all else from nothing; the schedule's own rates come back after each step."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    groups = [dict(params=[p]) for p in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.937)
    runner = SimpleNamespace(
        model=model, optim_wrapper=SimpleNamespace(optimizer=optimizer), train_dataloader=range(100), iter=0
    )
    hook = YOLOWarmupHook(epochs=2)
    for step, bias, other, momentum in ((0, 0.1, 0.0, 0.8), (100, 0.055, 0.005, 0.8685), (200, 0.01, 0.01, 0.937)):
        runner.iter = step
        hook.before_train_iter(runner, 0)
        rates = {name: g["lr"] for (name, _), g in zip(model.named_parameters(), optimizer.param_groups, strict=True)}
        assert rates == pytest.approx({name: bias if "bias" in name else other for name in rates})
        assert optimizer.param_groups[0]["momentum"] == pytest.approx(momentum)
        hook.after_train_iter(runner, 0)
        assert {(g["lr"], g["momentum"]) for g in optimizer.param_groups} == {(0.01, 0.937)}


def test_no_mosaics_at_the_end():
    skipped = []
    loader = SimpleNamespace(dataset=SimpleNamespace(update_skip_type_keys=skipped.append))
    for epoch in (89, 90, 99):
        MosaicOffHook(10).before_train_epoch(SimpleNamespace(epoch=epoch, max_epochs=100, train_dataloader=loader))
    assert skipped == [("Mosaic",)] * 2


@torch.no_grad()
def test_images_are_letterboxed():
    """Any size is filled with grey to a multiple of 32; boxes are those of the image as it came."""
    cfg = shrink(read(BY_STEM["yolo_mambayolo-tiny_pafpn_300e_coco"]), "mambayolo_pico")
    model = build_quickly(cfg).eval()
    data = sample("mmdet", 50, 75)
    data.set_metainfo(dict(scale_factor=(0.5, 0.5), ori_shape=(100, 150)))
    inputs = dict(inputs=[torch.zeros(3, 50, 75, dtype=torch.uint8)], data_samples=[data])
    batch = model.data_preprocessor(dict(inputs))["inputs"]
    assert batch.shape == (1, 3, 64, 96) and batch[..., :50, :75].abs().max() == 0
    assert batch[..., 50:, :].unique().tolist() == batch[..., 75:].unique().tolist() == pytest.approx([114 / 255])
    boxes = model.test_step(inputs)[0].pred_instances.bboxes
    assert len(boxes) and boxes.min() >= 0 and (boxes.amax(0) <= torch.tensor([150.0, 100.0, 150.0, 100.0])).all()

"""The stand-in for mmcv's compiled operators, through mmcv's own functions."""

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import mmcv
import pytest
import torch
import torchvision
from mmcv.ops import batched_nms, nms, roi_align, sigmoid_focal_loss, soft_nms

import vssm
from vssm._errors import MissingExtraError
from vssm._mmcv import MissingOperatorsFinder

EXT = Path(vssm.__file__).with_name("mm") / "mmcv_ext.py"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """The stand-in even where mmcv was compiled: its operators are what is tested."""
    spec = importlib.util.spec_from_file_location("stand_in", EXT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("nms", "roi_align", "focal_loss"):
        monkeypatch.setattr(sys.modules[f"mmcv.ops.{name}"], "ext_module", module)
    return module


def boxes_like(seed=0, count=60):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([low, low + 2 + torch.rand(count, 2, generator=generator) * 20], 1), torch.rand(
        count, generator=generator
    )


def test_nms_by_hand():
    # The second overlaps the first by 1/2, the third by 1/3.
    boxes = torch.tensor([[0.0, 0, 6, 6], [0, 0, 6, 3], [3, 0, 9, 6], [20, 20, 22, 22]])
    scores = torch.tensor([0.6, 0.9, 0.5, 0.3])
    dets, kept = nms(boxes, scores, 0.4)
    assert kept.tolist() == [1, 2, 3]
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    assert nms(boxes, scores, 0.6)[1].tolist() == [1, 0, 2, 3]
    assert nms(boxes, scores, 0.6, score_threshold=0.55, max_num=1)[1].tolist() == [1]


def test_nms_offset_counts_the_last_pixel():
    # Pixels 0 to 3 and 1 to 4 of one row share three of five; as borders they enclose nothing.
    boxes = torch.tensor([[0.0, 0, 3, 0], [1, 0, 4, 0]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.5, offset=0)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.5, offset=1)[1].tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nms_as_torchvision(dtype):
    boxes, scores = boxes_like()
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    expected = torchvision.ops.nms(boxes.float(), scores.float(), 0.3)
    assert nms(boxes, scores, 0.3)[1].tolist() == expected.tolist()


def test_batched_nms_as_torchvision():
    boxes, scores = boxes_like()
    classes = torch.arange(len(boxes)) % 3
    dets, kept = batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.3))
    expected = torchvision.ops.batched_nms(boxes, scores, classes, 0.3)
    assert kept.tolist() == expected.tolist()
    split = batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.3, split_thr=10))[1]
    assert split.tolist() == expected.tolist()
    torch.testing.assert_close(dets[:, :4], boxes[expected])


def test_nms_of_nothing():
    dets, kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64


def test_soft_nms_by_hand():
    boxes = torch.tensor([[0.0, 0, 6, 6], [0, 0, 6, 3], [20, 20, 22, 22]])
    scores = torch.tensor([0.6, 0.9, 0.3])
    dets, kept = soft_nms(boxes, scores, 0.3, method="linear")
    assert kept.tolist() == [1, 0, 2] or kept.tolist() == [1, 2, 0]  # 0.6 * (1 - 1/2) = 0.3: equal
    torch.testing.assert_close(dets[:, 4].sort().values, torch.tensor([0.3, 0.3, 0.9]))
    dets, kept = soft_nms(boxes, scores, 0.3, sigma=0.5, method="gaussian")
    assert dets[kept.tolist().index(0), 4].item() == pytest.approx(0.6 * 2.718281828 ** (-0.25 / 0.5), rel=1e-5)
    dets, kept = soft_nms(boxes, scores, 0.3, min_score=0.35, method="linear")
    assert kept.tolist() == [1] and dets.shape == (1, 5)
    assert soft_nms(boxes, scores, 0.3, method="naive")[1].tolist() == nms(boxes, scores, 0.3)[1].tolist()


def ramp(height=12, width=10, dtype=torch.float64):
    """A map whose value at (x, y) is x + 100 y, which bilinear sampling keeps."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (x + 100 * y).to(dtype)[None, None]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_of_a_ramp(mode, sampling_ratio, aligned):
    rois = torch.tensor([[0.0, 4, 6, 12, 18], [0, 2, 4, 15, 11]], dtype=torch.float64)
    rows, columns, scale = 2, 3, 0.5
    result = roi_align(ramp(), rois, (rows, columns), scale, sampling_ratio, mode, aligned)
    for region, (x1, y1, x2, y2) in enumerate((rois[:, 1:] * scale - 0.5 * aligned).tolist()):
        height, width = (y2 - y1) / rows, (x2 - x1) / columns
        samples_y = sampling_ratio or -int(-height // 1)
        samples_x = sampling_ratio or -int(-width // 1)
        # The average of samples in the middle of their cells is the centre; the largest is the last of them.
        at_y, at_x = (0.5, 0.5) if mode == "avg" else (1 - 0.5 / samples_y, 1 - 0.5 / samples_x)
        for i in range(rows):
            for j in range(columns):
                expected = x1 + (j + at_x) * width + 100 * (y1 + (i + at_y) * height)
                assert result[region, 0, i, j].item() == pytest.approx(expected)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_as_torchvision(sampling_ratio, aligned):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16, 20, requires_grad=True)
    boxes, _ = boxes_like(count=9)
    rois = torch.cat([torch.arange(9)[:, None] % 2, boxes], 1)
    ours = roi_align(x, rois, (7, 7), 0.25, sampling_ratio, "avg", aligned)
    theirs = torchvision.ops.roi_align(x, rois, (7, 7), 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    (ours_grad,) = torch.autograd.grad((ours * weight).sum(), x)
    (theirs_grad,) = torch.autograd.grad((theirs * weight).sum(), x)
    torch.testing.assert_close(ours_grad, theirs_grad)
    # In bfloat16, which torchvision does not have: what float32 gives, rounded.
    half = roi_align(x.bfloat16(), rois, (7, 7), 0.25, sampling_ratio, "avg", aligned)
    rounded = torchvision.ops.roi_align(x.bfloat16().float(), rois, (7, 7), 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(half, rounded.bfloat16())


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_gradient(mode, sampling_ratio):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    # One region hangs over the border, where samples are zero and have no gradient.
    rois = torch.tensor([[0.0, 1, 1, 9, 8], [1, -6, 2, 5, 30], [1, 3, 3, 4, 4]], dtype=torch.float64)
    function = lambda x: roi_align(x, rois, (2, 3), 0.5, sampling_ratio, mode, True)  # noqa: E731
    assert torch.autograd.gradcheck(function, x)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_of_no_regions(mode):
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    result = roi_align(x, torch.zeros(0, 5), (7, 7), 1.0, 0, mode, True)
    assert result.shape == (0, 2, 7, 7)
    result.sum().backward()
    assert x.grad.abs().sum() == 0


def test_focal_loss_as_mmdet():
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4])  # 4: the background
    ours = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum")
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    theirs = py_sigmoid_focal_loss(logits, one_hot, gamma=2.0, alpha=0.25, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


def test_other_operators_say_what_is_missing(stand_in):
    with pytest.raises(MissingExtraError, match="'deform_conv_forward'.*built from source"):
        stand_in.deform_conv_forward(1, 2)
    assert not hasattr(stand_in, "__wrapped__")


def test_finder_answers_for_one_name():
    finder = MissingOperatorsFinder()
    assert isinstance(finder.find_spec("mmcv._ext"), ModuleSpec)
    assert finder.find_spec("mmcv.ops") is None and finder.find_spec("mmdet._ext") is None
    assert [isinstance(known, MissingOperatorsFinder) for known in sys.meta_path].count(True) == 1


def test_a_compiled_mmcv_is_left_alone(monkeypatch, tmp_path):
    """A module in the place of mmcv's compiled one is found first."""
    monkeypatch.setattr(mmcv, "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    assert importlib.util.find_spec("mmcv._ext").origin == str(EXT)
    (tmp_path / "_ext.py").write_text("")
    importlib.invalidate_caches()
    assert importlib.util.find_spec("mmcv._ext").origin == str(tmp_path / "_ext.py")


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_imports_work_and_are_silent():
    done = python("import vssm, mmdet.models")
    assert done.returncode == 0, done.stderr
    done = python("import vssm.mm, mmdet.apis, mmseg.apis")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Mamba YOLO's detector, its loss and its files against the numbers of the official one."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from torch.nn.utils.rnn import pad_sequence

from tests import parity
from vssm.export import export_model
from vssm.mm import BoxesAndScores, MambaYOLODetector, MambaYOLOHead, convert_detector_checkpoint
from vssm.mm.yolo_targets import align_targets

RECORDS = parity.load("mambayolo")
# Record of the neck and the head, that of the backbone, and how the detector is built.
DETECTORS = {
    "_unit_detector": ("_unit", "mambayolo_pico", dict(depths=(2, 2, 4, 2)), dict(depth=2), 3),
    "mambayolo_tiny_detector": ("mambayolo_tiny", "mambayolo_tiny", {}, {}, 80),
}
CASES = [(key, i) for key in DETECTORS for i in range(len(RECORDS["variants"][key]["fp64"]["cases"]))]
LOSS = RECORDS["loss"]
LOSS_OPTIONS = {name: LOSS["assigner"][name] for name in ("topk", "alpha", "beta")}


def detector_of(key, blocks=None, neck=None, **options):
    _, name, backbone, own_neck, classes = DETECTORS[key]
    backbone, neck = blocks or backbone, neck or own_neck
    widths = [16 << i for i in (1, 2, 3)] if key == "_unit_detector" else [64, 128, 256]
    return MambaYOLODetector(
        backbone=dict(type="VSSMBackbone", model_name=name, out_indices=(1, 2, 3), **backbone),
        neck=dict(type="ODSSPAFPN", in_channels=widths, **neck),
        bbox_head=dict(type="MambaYOLOHead", num_classes=classes),
        **options,
    )


def official_of(key):
    backbone, rest = (RECORDS["variants"][name] for name in (DETECTORS[key][0], key))
    shapes = {**backbone["state_dict"], **rest["state_dict_rest"]}
    return parity.state_dict({"state_dict": shapes}, dtype=torch.float64)


def loaded(key):
    detector = detector_of(key).double().eval()
    weights = {**official_of(key), "model.21.dfl.conv.weight": torch.arange(16.0).view(1, 16, 1, 1)}
    detector.load_state_dict(convert_detector_checkpoint({"state_dict": weights}, detector))
    return detector


@pytest.mark.parametrize("key", DETECTORS)
def test_parameters(key):
    with torch.device("meta"):
        detector = detector_of(key)
    # The official count holds the distances 0 to 15, which are fixed.
    assert sum(p.numel() for p in detector.parameters()) + 16 == RECORDS["variants"][key]["params"]


@pytest.mark.parametrize(("key", "number"), CASES)
def test_detector(key, number):
    """Neck, raw maps, boxes and scores in float64; the nets magnify rounding."""
    detector, case = loaded(key), RECORDS["variants"][key]["fp64"]["cases"][number]
    x = parity.image(case).double().requires_grad_("grad_l2" in case)
    levels = detector.extract_feat(x)
    classes, sides = detector.bbox_head(levels)
    raw = [torch.cat([side, score], dim=1) for side, score in zip(sides, classes, strict=True)]
    boxes, scores = (y.transpose(1, 2) for y in detector.bbox_head.decode(classes, sides))
    corners, size = boxes.unflatten(1, (2, 2)).unbind(1), boxes[:, 2:] - boxes[:, :2]
    decoded = torch.cat([(corners[0] + corners[1]) / 2, size, scores], dim=1)
    assert [list(y.shape) for y in raw] == case["raw_shapes"] and list(decoded.shape) == case["decoded_shape"]
    for what, maps in (("neck", levels), ("raw", raw)):
        for i, (got, summary) in enumerate(zip(maps, case[what], strict=True)):
            parity.check_summary(got, summary, 1e-7, f"{what} {i}")
    parity.check_summary(decoded, case["decoded"], 1e-7, "decoded")
    if "grad_l2" not in case:
        return
    output = torch.cat([y.flatten(2) for y in raw], dim=2)
    parity.check_summary(output, case["raw_cat"], 1e-7, "raw")
    parity.loss(output).backward()
    parity.check_summary(x.grad, case["grad_input"], 1e-6, "input gradient")
    names = parity.gradient_names(
        {"state_dict": {name: list(value.shape) for name, value in official_of(key).items()}},
        convert_detector_checkpoint,
        detector,
    )
    gradients = {name: p.grad.norm().item() for name, p in detector.named_parameters()}
    assert {names[name] for name in case["grad_l2"]} == gradients.keys()
    parity.check_norms({name: gradients[names[name]] for name in case["grad_l2"]}, case, 1e-6)


@torch.no_grad()
def test_any_size_passes_the_neck():
    """Odd maps meet as they are: an image that nobody has padded."""
    detector = detector_of("_unit_detector", blocks=dict(depths=(1, 1, 1, 1)), neck=dict(depth=1)).eval()
    levels = detector.extract_feat(torch.randn(1, 3, 75, 101))
    assert [tuple(y.shape[2:]) for y in levels] == [(10, 13), (5, 7), (3, 4)]


def raw_maps():
    draws = [np.random.RandomState(11 + i).standard_normal(shape) for i, shape in enumerate(LOSS["shapes"])]
    return [torch.from_numpy((2 * draw).astype(np.float32)).requires_grad_() for draw in draws]


def split(raw):
    return [y[:, 64:] for y in raw], [y[:, :64] for y in raw]


def objects():
    """The boxes of the record: image, class, centre and size as shares of 96 x 128 pixels."""
    found = []
    for number in range(3):
        rows = torch.tensor([row[1:] for row in LOSS["targets"] if row[0] == number]).view(-1, 5)
        centres, sizes = rows[:, 1:3] * torch.tensor([128, 96]), rows[:, 3:] * torch.tensor([128, 96])
        boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=1)
        found.append(InstanceData(bboxes=boxes, labels=rows[:, 0].long()))
    return found


@torch.no_grad()
def test_targets():
    """The same points for the same boxes, one by one, and what they shall say."""
    head = MambaYOLOHead(3, [8, 8, 8])
    classes, sides = split(raw_maps())
    boxes, scores = head.decode(classes, sides)
    gts = objects()
    padded = [pad_sequence([getattr(y, name) for y in gts], True) for name in ("labels", "bboxes")]
    valid = torch.arange(3) < torch.tensor([len(y) for y in gts])[:, None]
    targets = align_targets(scores, boxes, head.points(classes)[0], *padded, valid, **LOSS_OPTIONS)
    for image, points in enumerate(LOSS["positives"]):
        assert targets.positive[image].nonzero().flatten().tolist() == points
        assert targets.gt[image, points].tolist() == LOSS["positive_gt"][image]
        said = targets.scores[image, points].sum(-1).tolist()
        assert said == pytest.approx(LOSS["positive_scores"][image], rel=1e-5)
    assert targets.scores.sum().item() == pytest.approx(LOSS["target_score_sum"], rel=1e-6)


def test_without_objects():
    head, raw = MambaYOLOHead(3, [8, 8, 8]), raw_maps()
    nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    terms = head.loss_by_feat(*split(raw), [nothing] * 3)
    parts = [terms[name].item() / 3 for name in ("loss_bbox", "loss_cls", "loss_dfl")]
    assert parts == pytest.approx(LOSS["empty"]["parts"], rel=1e-6)
    assert all(y.isfinite().all() for y in torch.autograd.grad(sum(terms.values()), raw))


def test_loss():
    """The three terms, and the gradient of the raw maps."""
    head, raw = MambaYOLOHead(3, [8, 8, 8]), raw_maps()
    classes, sides = split(raw)
    terms = head.loss_by_feat(classes, sides, objects())
    parts = [terms[name].item() / 3 for name in ("loss_bbox", "loss_cls", "loss_dfl")]
    assert parts == pytest.approx(LOSS["parts_box_cls_dfl"], rel=1e-6)
    total = sum(terms.values())
    assert total.item() == pytest.approx(LOSS["total"], rel=1e-6)
    gradients = torch.autograd.grad(total, raw)
    for i, (gradient, summary) in enumerate(zip(gradients, LOSS["grad"], strict=True)):
        parity.check_summary(gradient, summary, 1e-5, f"gradient {i}")
    assert [g.norm().item() for g in gradients] == pytest.approx(LOSS["grad_l2"], rel=1e-5)


@pytest.mark.slow
def test_the_whole_detector_in_one_file(tmp_path):
    """ONNX for one size: boxes and scores of every point are the detector's. It has one block with a scan."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    detector = detector_of("_unit_detector", blocks=dict(depths=(0, 0, 0, 1)), neck=dict(depth=0)).eval()
    module = BoxesAndScores(detector)
    done = export_model(module, tmp_path / "yolo.onnx", (1, 3, 32, 64))
    images = torch.rand(done.shapes[0])
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    boxes, scores = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    with torch.no_grad():
        want = module(images)
    assert boxes.shape == (1, 42, 4) and scores.shape == (1, 42, 3)
    assert (boxes - want[0]).abs().max() < 1e-2 and (scores - want[1]).abs().max() < 1e-4

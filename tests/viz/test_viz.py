"""Receptive fields and pictures."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from vssm._errors import UserError
from vssm.engine import Digits, TimmClassifier, create_model
from vssm.viz import (
    PATTERNS,
    VOLUME_PATTERNS,
    effective_receptive_field,
    high_contribution_side,
    plot_learning_curves,
    plot_predictions,
    plot_receptive_fields,
    plot_routes,
    read_log,
)
from vssm_kernels import Route


class OneConv(nn.Module):
    def __init__(self, kernel):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, kernel, padding=kernel // 2, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)

    def forward_features(self, x):
        return self.conv(x)


def test_the_field_of_a_convolution_is_its_kernel():
    field = effective_receptive_field(OneConv(3), torch.ones(2, 1, 9, 9))
    expected = torch.zeros(9, 9)
    expected[3:6, 3:6] = 1
    assert torch.equal(field, expected)
    assert high_contribution_side(field, 0.05) == 1
    assert high_contribution_side(field, 1.0) == 3


def test_a_centre_that_is_switched_off_sees_nothing():
    assert effective_receptive_field(OneConv(3), -torch.ones(1, 1, 9, 9)).abs().sum() == 0


@pytest.mark.parametrize("name", ["vmamba_pico", "test_resnet", "test_convnext"])
def test_any_timm_model(name):
    model = create_model(name, num_classes=0).train()
    field = effective_receptive_field(model, torch.randn(3, 3, 64, 96), batch_size=2)
    assert field.shape == (64, 96) and field.min() >= 0 and field.sum() > 0 and field.isfinite().all()
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    first = effective_receptive_field(model, torch.randn(1, 3, 64, 96), stage=0)
    assert (first > 0).sum() <= (field > 0).sum()


def test_bad_images():
    with pytest.raises(ValueError, match=r"\(B, C, H, W\).*\(3, 8, 8\)"):
        effective_receptive_field(OneConv(3), torch.ones(3, 8, 8))
    with pytest.raises(ValueError, match="OneConv has no forward_intermediates"):
        effective_receptive_field(OneConv(3), torch.ones(1, 1, 8, 8), stage=0)
    with pytest.raises(ValueError, match="no feature map"):
        effective_receptive_field(nn.Identity(), torch.ones(1, 1, 8, 8))


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def test_predictions_picture(tmp_path):
    classifier = TimmClassifier(dict(name="test_convnext", num_classes=10)).eval()
    share = plot_predictions(classifier, Digits("test"), tmp_path / "p.png", columns=8, rows=2)
    assert 0 <= share < 0.5
    width, height = size(tmp_path / "p.png")
    assert width > 800 and height > 300


def test_receptive_field_picture(tmp_path):
    fields = {"before": torch.rand(32, 32), "after": torch.zeros(32, 32)}
    plot_receptive_fields(fields, tmp_path / "r.png")
    assert size(tmp_path / "r.png")[0] > 800


def write_log(folder, records):
    path = folder / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(json.dumps(record) if isinstance(record, dict) else record for record in records))


def test_a_resumed_log_reads_as_one(tmp_path):
    def step(number, loss):
        return {"loss": loss, "iter": number, "epoch": (number + 1) // 2, "lr": 1.0, "step": number}

    def evaluation(epoch, score):
        return {"accuracy/top1": score, "step": epoch}

    killed = [step(1, 5.0), step(2, 4.0), evaluation(1, 50.0), step(3, 9.0), '{"loss": 3.0, "it']
    write_log(tmp_path / "20260101_000000", killed)
    write_log(tmp_path / "20260101_000100", [step(3, 3.0), step(4, 2.0), evaluation(2, 70.0)])
    train, evaluations = read_log(tmp_path)
    assert [record["loss"] for record in train] == [5.0, 4.0, 3.0, 2.0]
    assert [(record["epoch"], record["accuracy/top1"]) for record in evaluations] == [(1, 50.0), (2, 70.0)]
    plot_learning_curves([tmp_path], tmp_path / "c.png")
    assert size(tmp_path / "c.png")[0] > 1000
    # Started anew in the same folder: the old run is gone.
    write_log(tmp_path / "20260101_000200", [step(1, 8.0)])
    assert [record["loss"] for record in read_log(tmp_path)[0]] == [8.0]


def test_no_log(tmp_path):
    with pytest.raises(UserError, match="holds no log"):
        read_log(tmp_path)


def test_every_pattern_is_drawn(tmp_path):
    path = plot_routes(tmp_path / "all.png")
    with Image.open(path) as picture:
        # Two patterns of up to four routes in a row.
        assert picture.width == 1050 and picture.height > picture.width * len(PATTERNS) / 2 / 8
    one = {"strided": (Route(stride=(2, 2), offset=(1, 1)),)}
    # A stride that leaves no pixel of a map of one, and a map of one.
    assert plot_routes(tmp_path / "one.png", one, height=1, width=1).stat().st_size > 0
    assert plot_routes(tmp_path / "dot.png", {"row": (Route(),)}, height=1, width=1).stat().st_size > 0
    assert plot_routes(tmp_path / "volumes.png", VOLUME_PATTERNS, height=2, width=3).stat().st_size > 0
    with pytest.raises(UserError, match="over 4 dimensions cannot be drawn"):
        plot_routes(tmp_path / "four.png", {"four": (Route(axes=(0, 1, 2, 3)),)})
    with pytest.raises(ValueError, match="needs a pattern and a map, got 0 patterns of 6 x 6"):
        plot_routes(tmp_path / "none.png", {})

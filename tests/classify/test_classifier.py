"""Loss, answers and accuracy of classifiers."""

import pytest
import torch
from timm.utils import accuracy
from torch import nn

from vssm.classify import Accuracy, TimmClassifier
from vssm.engine import ConfigError, create_model
from vssm.models.create import ModelError

TINY = dict(name="test_convnext", num_classes=4)


def test_the_loss_follows_the_options():
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    plain = TimmClassifier(TINY).eval()
    logits = plain(images)
    assert logits.shape == (4, 4)
    torch.testing.assert_close(plain(images, labels, "loss")["loss"], nn.functional.cross_entropy(logits, labels))
    smooth = TimmClassifier(TINY, label_smoothing=0.1).eval()
    smooth.load_state_dict(plain.state_dict())
    expected = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(smooth(images, labels, "loss")["loss"], expected)
    mixed = TimmClassifier(TINY, mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0), label_smoothing=0.1)
    before = images.clone()
    assert mixed(images, labels, "loss")["loss"].isfinite()
    assert torch.equal(before, images), "mixing changed the caller's batch"
    with pytest.raises(ValueError, match="holds 3: set an even batch_size"):
        mixed(images[:3], labels[:3], "loss")


def test_predictions():
    model = TimmClassifier(TINY).eval()
    answers = model(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]), "predict")
    assert [int(a["label"]) for a in answers] == [1, 2]
    torch.testing.assert_close(answers[0]["scores"].sum(), torch.tensor(1.0))
    assert "label" not in model(torch.randn(2, 3, 32, 32), mode="predict")[0]
    with pytest.raises(ValueError, match="not 'guess'"):
        model(torch.randn(2, 3, 32, 32), mode="guess")
    with pytest.raises(ValueError, match="needs labels"):
        model(torch.randn(2, 3, 32, 32), mode="loss")


def test_unknown_models_and_options_are_one_sentence():
    with pytest.raises(ModelError, match=r"no model 'vmamba_pica' \(did you mean 'vmamba_pico'"):
        create_model("vmamba_pica")
    with pytest.raises(ModelError, match="'vmamba_pico' does not take .*colour"):
        create_model("vmamba_pico", colour="red")
    with pytest.raises(ModelError, match="lacks 'name'"):
        TimmClassifier({})
    with pytest.raises(ConfigError, match="model.mixup has the unknown option 'mixup'.*'mixup_alpha'"):
        TimmClassifier(TINY, mixup=dict(mixup=0.8))


def metric_of(scores, labels, **options):
    metric = Accuracy(**options)
    metric.process(None, [{"scores": s, "label": label} for s, label in zip(scores, labels, strict=True)])
    return metric.evaluate(len(labels))


def test_accuracy_is_timms():
    torch.manual_seed(0)
    scores, labels = torch.randn(50, 10), torch.randint(10, (50,))
    top1, top5 = accuracy(scores, labels, topk=(1, 5))
    result = metric_of(scores, labels)
    assert result == {"accuracy/top1": pytest.approx(top1.item()), "accuracy/top5": pytest.approx(top5.item())}


def test_ties_and_nan_do_not_count_as_right():
    labels = torch.tensor([0, 1])
    assert metric_of(torch.zeros(2, 10), labels)["accuracy/top1"] == 0
    assert metric_of(torch.full((2, 10), torch.nan), labels)["accuracy/top5"] == 0


def test_images_the_sampler_repeated_are_cut_off():
    metric = Accuracy(topk=(1,))
    scores = torch.eye(3)
    labels = torch.tensor([0, 1, 0])
    metric.process(None, [{"scores": s, "label": label} for s, label in zip(scores, labels, strict=True)])
    assert metric.evaluate(2) == {"accuracy/top1": 100.0}

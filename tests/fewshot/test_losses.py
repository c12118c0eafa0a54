"""The fixed classifier and the losses against the official ones."""

import numpy as np
import pytest
import torch

from tests import parity
from tests.fewshot.conftest import official_gate
from vssm._errors import UserError
from vssm.fewshot import (
    ETFClassifier,
    class_sensitive_losses,
    dot_regression_loss,
    mix_features,
    separation_losses,
    suppression_losses,
)

OPS = parity.load("mamba_fscil")["ops"]
NAMES = {"dt": "dts", "B": "Bs", "C": "Cs"}


@pytest.mark.parametrize("case", OPS["class_sensitive_losses"]["cases"], ids=lambda case: case["variant"])
def test_class_sensitive_losses(official, case):
    record = parity.load("mamba_fscil")["variants"][case["variant"]]
    got = official(case["variant"])(parity.image(case))
    labels, weights, expected = torch.tensor(case["labels"]), case["weights"], case["losses"]
    got = got._replace(gate=official_gate(got.gate, record))
    losses = class_sensitive_losses(
        got,
        labels,
        case["base_classes"],
        weights["loss_weight_supp"],
        weights["loss_weight_supp_novel"],
        weights["loss_weight_sep"],
        weights["loss_weight_sep_new"],
    )
    official_names = {"loss_suppression_base": "loss_supp_base", "loss_suppression_new": "loss_supp_novel"}
    for branch in ("base", "new"):
        official_names |= {f"loss_separation_{a}_{branch}": f"loss_sep_{b}_{branch}" for a, b in NAMES.items()}
    assert {official_names[name] for name in losses} == set(expected)
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[official_names[name]], rel=1e-5), name


def test_a_batch_of_one_kind_has_no_separation_and_finite_gradients(official):
    got = official("_unit_ssm_new")(torch.randn(2, 12, 3, 3))
    losses = class_sensitive_losses(got, torch.tensor([7, 8]), 4, 1.0, 1.0, 1.0, 1.0)
    assert set(losses) == {"loss_suppression_base", "loss_suppression_new"}
    assert losses["loss_suppression_base"].item() == 0
    sum(losses.values()).backward()
    assert set(suppression_losses(got.gate.detach(), torch.tensor([True, False]), 1, 1)) == set(losses)
    assert len(separation_losses(got.selection, torch.tensor([True, False]), 1.0)) == 3


def test_etf_classifier_and_dot_regression():
    record = OPS["etf"]
    head = ETFClassifier(8, 5)
    gram = torch.tensor(record["gram"]).view(5, 5)
    torch.testing.assert_close(head.etf_vec.T @ head.etf_vec, gram, atol=1e-6, rtol=0)
    assert torch.equal(head.etf_vec, ETFClassifier(8, 5).etf_vec)
    assert not torch.equal(head.etf_vec, ETFClassifier(8, 5, seed=1).etf_vec)
    head.load_state_dict({"etf_vec": torch.tensor(record["etf_vec"]).view(8, 5)})
    x = torch.from_numpy(np.random.RandomState(4).standard_normal((4, 8))).float()
    torch.testing.assert_close(head(x, 3).flatten(), torch.tensor(record["scores"]), atol=1e-6, rtol=1e-5)
    labels = torch.tensor([0, 4, 2, 2])
    targets = head.targets(labels)
    assert dot_regression_loss(x, targets).item() == pytest.approx(record["dr_loss"], rel=1e-5)
    balanced = dot_regression_loss(x, targets, labels, 5)
    assert balanced.item() == pytest.approx(record["dr_loss_with_len"], rel=1e-5)
    with pytest.raises(UserError, match="of 2 to 4 classes, not of 5"):
        ETFClassifier(4, 5)


def test_mixing_features():
    x = torch.tensor([[0.0], [4.0]])
    assert mix_features(x, torch.tensor([1, 0]), 0.75).tolist() == [[1.0], [3.0]]

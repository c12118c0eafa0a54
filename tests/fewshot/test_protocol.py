"""Sessions on synthetic maps, where it is known what has to come out."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from vssm._errors import UserError
from vssm.fewshot import (
    DualProjector,
    ETFClassifier,
    IncrementalNet,
    Recipe,
    Score,
    Split,
    look_at,
    run_sessions,
)
from vssm.fewshot.protocol import score
from vssm.fewshot.report import plot_outcomes, summary, table

SPLIT = Split(order=(0, 1, 2, 3), sizes=(2, 1, 1), shots=3)


class Blobs(Dataset):
    """Every class has a map of its own, with little noise."""

    def __init__(self, classes: int, each: int, seed: int):
        centres = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(classes * each, 6, 2, 2, generator=torch.Generator().manual_seed(seed))
        self.labels = [number for number in range(classes) for _ in range(each)]
        self.maps = centres[self.labels] + 0.1 * noise

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"inputs": self.maps[index], "labels": self.labels[index]}


class AsList(nn.Module):
    def forward(self, x):
        return [x]


@pytest.fixture
def net():
    torch.manual_seed(0)
    projector = DualProjector(6, 8, 2, "map", d_state=3, dt_rank=2)
    return IncrementalNet(AsList(), projector, ETFClassifier(8, 4), 2).eval()


def run(net, train, **options):
    kept = look_at(net, Blobs(2, 5, seed=1), Blobs(4, 6, seed=2))
    recipe = Recipe(**{**dict(lr=0.1, steps=30, batch_size=4, loss_weight=1.0), **options})
    return kept, run_sessions(net, kept, train, train.labels, SPLIT, recipe)


def test_sessions(net, tmp_path):
    train, before = Blobs(4, 5, seed=1), copy.deepcopy(net.state_dict())
    kept, outcome = run(net, train, lr=0.03, steps=100, loss_weight=10.0, mix_probability=0.0)
    torch.testing.assert_close(kept.means, train.maps[:10].view(2, 5, 6, 2, 2).mean(1))
    # The run works on a copy, and the first branch stays.
    after = outcome.net.state_dict()
    assert net.projector.new is None and all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert outcome.net.classes == 4
    # These maps are far apart, so class means answer all.
    for method in ("class means, backbone", "class means, projector"):
        assert [one.all for one in outcome.scores[method]] == [100] * 3
    ours = outcome.scores["sessions"]
    assert [(one.session, one.classes) for one in ours] == [(0, 2), (1, 3), (2, 4)]
    assert ours[0].new is None and ours[1].old is None and ours[2].old is not None
    assert ours[0].all < 60 and ours[2].all > 75, "four maps that are far apart are learnt"

    lines = table([outcome, outcome], {"0": "80.0", "2": "70.0"}).splitlines()
    assert len(lines) == 4 and lines[1].endswith("80.0") and lines[2].endswith("-") and "±0.00" in lines[1]
    assert len({len(line) for line in lines}) == 1
    assert summary([outcome])["mean_all"]["class means, backbone"] == [100] * 3
    assert plot_outcomes([outcome, outcome], tmp_path / "a.png", {"0": "80.0"}).stat().st_size > 5000


def test_a_seed_fixes_all(net):
    options = dict(suppress_base=1.0, suppress_new=0.1, separate_base=0.1, separate_new=0.1, steps=2)
    (_, one), (_, other) = (run(net, Blobs(4, 5, seed=1), **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True))
    assert one.as_dict() == other.as_dict()
    _, without = run(net, Blobs(4, 5, seed=1), steps=2)
    assert not torch.equal(one.net.projector.new.pos_embed, without.net.projector.new.pos_embed)


def test_the_first_branch_learns_where_that_is_asked_for(net):
    net.projector.detach = False
    _, outcome = run(net, Blobs(4, 5, seed=1), first_branch_lr=0.2, steps=[2, 1])
    assert not torch.equal(outcome.net.projector.base.pos_embed, net.projector.base.pos_embed)


def test_scores_are_of_the_known_classes_by_kind():
    split = Split(tuple(range(4)), (2, 1, 1))
    truth, answers = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 3, 3])
    assert score(answers, truth, split, 2) == Score(2, 4, 60.0, pytest.approx(200 / 3), 0.0, 100.0)


@pytest.mark.parametrize(
    "options", [dict(steps=0), dict(base_copies=[1, 0]), dict(mix_probability=2), dict(lr=0)], ids=str
)
def test_wrong_recipes_are_named(options):
    with pytest.raises(UserError, match=f"incremental.{next(iter(options))} is"):
        Recipe(**options)


def test_values_by_session_go_on():
    recipe = Recipe(steps=[5, 7], base_copies=2)
    assert [recipe.at("steps", i) for i in (1, 2, 3)] == [5, 7, 7] and recipe.at("base_copies", 4) == 2


def test_a_base_class_without_images_is_named(net):
    with pytest.raises(UserError, match="base class 1 has no training image"):
        look_at(net, Blobs(1, 3, seed=1), Blobs(4, 1, seed=2))

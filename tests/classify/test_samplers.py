"""Samplers of ours, in one process and as in several."""

from collections import Counter

import pytest

from vssm.classify import RepeatSampler
from vssm.engine import ConfigError


def test_repetitions_go_to_other_processes(monkeypatch):
    """Three times each, none twice in a process of three, other samples in another epoch, none left over at the end."""
    orders = []
    for rank in range(3):
        monkeypatch.setattr("vssm.classify.samplers.get_dist_info", lambda rank=rank: (rank, 3))
        sampler = RepeatSampler(range(1000), repeats=3, seed=0)
        orders.append(list(sampler))
        assert len(sampler) == len(orders[-1]) == 768 // 3
    every = Counter(index for order in orders for index in order)
    assert set(every.values()) == {3} and all(len(set(order)) == len(order) for order in orders)
    sampler.set_epoch(1)
    assert set(sampler) != set(orders[-1])


def test_without_repetition_and_refused():
    sampler = RepeatSampler(range(10), repeats=1, seed=0)
    assert sorted(sampler) == list(range(10)) and list(sampler) == list(sampler)
    with pytest.raises(ConfigError, match="1 or more, not 0"):
        RepeatSampler(range(10), repeats=0)

"""Checks of a run before its first step."""

import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from vssm._errors import DataError
from vssm.engine import ConfigError, checks
from vssm.engine.checks import check_run, register_check


class Numbers(Dataset):
    def __init__(self, count, classes=("a", "b")):
        self.count, self.metainfo = count, {"classes": classes}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index


def loader(count, size, drop_last=True, sampler=DefaultSampler, **options):
    data = Numbers(count, **options)
    return DataLoader(data, size, sampler=sampler(data), drop_last=drop_last)


def test_too_few_samples_are_one_sentence():
    with pytest.raises(DataError, match="has 3 samples, .* of 4 .*train_dataloader.batch_size=3"):
        check_run(nn.Identity(), loader(3, 4), "train_dataloader")
    with pytest.raises(DataError, match="val_dataloader.dataset has no samples"):
        check_run(nn.Identity(), loader(0, 1, drop_last=False), "val_dataloader")
    check_run(nn.Identity(), loader(3, 4, drop_last=False), "train_dataloader")
    check_run(nn.Identity(), loader(3, 4, sampler=InfiniteSampler), "train_dataloader")


def test_one_text_is_no_list_of_classes():
    with pytest.raises(ConfigError, match=r"text 'crack', whose letters .* \('crack',\)"):
        check_run(nn.Identity(), loader(3, 1, classes="crack"), "train_dataloader")


def test_checks_see_the_data_inside_of_wrappers(monkeypatch):
    monkeypatch.setattr(checks, "_CHECKS", [])
    seen = []
    register_check(lambda model, dataset: seen.append((model, dataset)))
    model, parts = nn.Identity(), [Numbers(2), Numbers(3)]
    check_run(model, DataLoader(ConcatDataset(parts)), "train_dataloader")
    assert seen == [(model, part) for part in parts]

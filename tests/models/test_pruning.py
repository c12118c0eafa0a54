"""Token pruning of plain nets, against the released code's records and against the scans spelled out."""

import pytest
import timm
import torch

from tests import parity
from vssm.models.vim import checkpoint_filter_fn

SITES = (4, 9, 14)
RECORD = parity.load("token_pruning")["variants"]["_unit_vim"]
CASES = [*RECORD["cases"], RECORD["batch_of_two"]]


@pytest.fixture(scope="module")
def vim():
    model = timm.create_model("vim_pico", dim=24, depth=16, d_state=16, img_size=96, num_classes=10).eval()
    assert sum(p.numel() for p in model.parameters()) == RECORD["params"]
    model.load_state_dict(checkpoint_filter_fn(parity.state_dict(RECORD), model))
    return model


class Chosen:
    """Which tokens each site kept among those that came to it, the class token left out."""

    def __init__(self, monkeypatch):
        from vssm.models import _pruning

        self.found = []
        select = _pruning.gather_tokens

        def record(x, indices):
            self.found.append(indices)
            return select(x, indices)

        monkeypatch.setattr(_pruning, "gather_tokens", record)

    def patches(self):
        middles = [x.shape[1] // 2 for x in self.found]
        return [torch.cat([x[:, :m], x[:, m + 1 :]], 1).tolist() for x, m in zip(self.found, middles, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['shape'][0]}-{case['seed']}")
@pytest.mark.parametrize("reading", ["paper_score", "released"])
@torch.no_grad()
def test_records(vim, case, reading, monkeypatch):
    vim.set_pruning(SITES, 0.8, as_released=reading == "released")
    chosen = Chosen(monkeypatch)
    output = vim(parity.image(case))
    expected, kept = torch.tensor(case[reading]["output"]), case[reading]["kept"]
    kept = kept if case["shape"][0] > 1 else [[x] for x in kept]
    assert chosen.patches() == kept
    assert (output - expected.view_as(output)).abs().max() < 1e-4 * expected.std()

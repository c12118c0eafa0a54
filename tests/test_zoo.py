"""The model zoo's pages say what the registry, the configs and the measurements say."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vssm
from tests import conftest, parity
from vssm import _headers
from vssm._errors import UserError
from vssm.published import PUBLISHED

pytest.importorskip("fvcore")

from vssm import zoo  # noqa: E402

REPO = Path(__file__).parents[1]
PAGE = REPO / "model_zoo.md"
RECORD = max((REPO / "benchmarks" / "results").glob("*_parity_cpu.json"))


@pytest.mark.slow
def test_the_pages_are_fresh():
    for page, text in zoo.pages(REPO).items():
        assert page.read_text() == text, f"{page.relative_to(REPO)} is stale: run `make zoo`"


def test_every_published_model_is_listed():
    listed = set(re.findall(r"^\| `(\w+)(?:\.\w+)?` \|", PAGE.read_text(), re.MULTILINE))
    assert {name for name in vssm.list_models() if not name.endswith("_pico")} < listed


def test_every_official_vector_was_measured():
    deviations = json.loads(RECORD.read_text())["deviations"]
    assert set(deviations) == set(parity.names().values())
    assert all(0 < value < 1e-2 for kinds in deviations.values() for kind in kinds.values() for value in kind.values())


@pytest.mark.parametrize(("counted", "reason", "said"), [(5.06, "", "differ"), (4.96, "another counter", "agree")])
def test_another_count_needs_a_reason(counted, reason, said):
    known = dataclasses.replace(PUBLISHED["msvmambav3_tiny.in1k"], not_reproduced=reason)
    with pytest.raises(UserError, match=f"msvmambav3_tiny.* 5.0 GFLOPs .*; they {said}"):
        zoo.disagreement("msvmambav3_tiny.in1k", counted, known)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("# Mask R-CNN: 40 M parameters", "must begin '# NETWORK on BACKBONE"),
        ("# Mask R-CNN on x, 12 epochs: 40 M parameters, 2 GFLOPs at 9 x 9 pixels.", "'Published for DATA: ...'"),
        (
            "# Mask R-CNN on x, 12 epochs: 40 M parameters, 2 GFLOPs at 9 x 9 pixels.\n# Nothing was published for it.",
            "'Weights: ADDRESS'",
        ),
    ],
)
def test_a_header_that_says_too_little(tmp_path, header, said):
    path = tmp_path / "config.py"
    path.write_text(f"{header}\n_base_ = []\n")
    with pytest.raises(UserError, match=re.escape(said)):
        _headers.read_dense(path)


def test_a_medical_header_that_says_too_little(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("# vm_unet: 27.43 M parameters.\n_base_ = []\n")
    with pytest.raises(UserError, match="Published: none"):
        _headers.read_medical(path)


def summary(x):
    probe = x.double()[torch.linspace(0, x.numel() - 1, 16).long()].tolist()
    return dict(mean=x.mean().item(), std=x.std(correction=0).item(), l2=x.norm().item(), probe=probe)


def test_the_largest_deviation_of_all_workers_is_recorded(tmp_path, monkeypatch):
    """As tests/conftest.py does it: a worker hands over what it saw, the first process writes the file."""
    x = torch.linspace(-1, 1, 100)
    monkeypatch.setattr(parity, "deviations", {})
    for key, factor in [("vssd_micro", 1 + 2e-4), ("vssd_micro", 1 + 1e-4), ("_unit", 1 + 5e-4), (None, 1 + 5e-4)]:
        parity.measure(key)
        parity.check_summary(factor * x, summary(x), 1e-3, "output")
    parity.measure("vssd_micro")
    with pytest.raises(AssertionError, match="output: probes .* differ by 2.0"):
        parity.check_summary(1.2 * x.double(), summary(x), 1e-3, "output")
    parity.measure(None)
    worker = SimpleNamespace(config=SimpleNamespace(workeroutput={}))
    conftest.pytest_sessionfinish(worker, 0)
    seen = worker.config.workeroutput["parity"]
    assert set(seen) == {"vssd_micro"}
    assert seen["vssd_micro"]["outputs"] == {"float32": pytest.approx(2e-4, rel=0.01), "float64": pytest.approx(0.2)}

    monkeypatch.setattr(parity, "deviations", {"vssd_micro": {"outputs": {"float32": 1e-4}}})
    conftest.pytest_testnodedown(SimpleNamespace(workeroutput=json.loads(json.dumps(worker.config.workeroutput))))
    file = tmp_path / "parity.json"
    session = SimpleNamespace(config=SimpleNamespace(getoption=lambda name: str(file)))
    with pytest.raises(pytest.UsageError, match="is not written, because a test failed"):
        conftest.pytest_sessionfinish(session, 1)
    assert not file.exists()
    conftest.pytest_sessionfinish(session, 0)
    record = json.loads(file.read_text())
    assert record["deviations"] == seen and set(record["environment"]) == {"date", "torch", "cpu", "compiled scan"}

"""The tables of models say what the models, the data files and the measurements say, and published figures come out."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

import vssm
from tests import conftest, parity
from vssm._errors import UserError
from vssm.published import COLLECTIONS, NETWORKS, PUBLISHED, RUNS, expand, published, read_file

pytest.importorskip("fvcore")
pytest.importorskip("mmengine")

from vssm import zoo  # noqa: E402

REPO = Path(__file__).parents[1]
RECORD = max((REPO / "benchmarks" / "results").glob("*_parity_cpu.json"))
DENSE = [
    config for config in RUNS if config.startswith(("configs/detection/", "configs/segmentation/", "configs/pose/"))
]
SPATIALMAMBA = json.loads((REPO / "tests" / "data" / "models" / "spatialmamba.json").read_text())


def count(function, *args):
    """In a thread, whose stack is short: a trace writes down the whole stack for every operator."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()


def rounded(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_gflops(name):
    """To the last printed digit, or with a reason why not; a reason that is not needed fails."""
    known, gflops = PUBLISHED[name], count(zoo.classifier_cost, name.partition(".")[0]).gflops
    if known.gflops:
        assert (rounded(gflops, known.gflops) == known.gflops) == (not known.not_reproduced)
    assert not known.counter or rounded(gflops, known.counter) == known.counter


@pytest.mark.parametrize("name", [name for name, facts in SPATIALMAMBA.items() if "gflops" in facts])
def test_gflops_of_spatialmamba_in_two_parts(name):
    """What fvcore counts on the official code in training, and what that adds for the scans: 7 for each channel."""
    known, model = SPATIALMAMBA[name]["gflops"], timm.create_model(name, device="meta")
    scans = 0
    for info, stage in zip(model.feature_info, model.stages, strict=True):
        inner = {block.mixer.Ds.shape[0] for block in stage.blocks}.pop()
        scans += 7 * (224 // info["reduction"]) ** 2 * inner * len(stage.blocks) / 1e9
    assert rounded(scans, known["scans"]) == known["scans"]
    assert rounded(count(zoo.classifier_cost, name).gflops - scans, known["operators"]) == known["operators"]


@pytest.mark.slow
@pytest.mark.parametrize("config", DENSE)
def test_published_costs_of_detectors_and_segmentors(config):
    """As above; and a figure that contradicts another printed one is not ours."""
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    known, cost = RUNS[config], count(zoo.dense_cost, REPO / config)
    for what, ours, printed in (("Parameters", cost.params, known.params), ("FLOPs", cost.gflops, known.gflops)):
        assert not printed or (rounded(ours, printed) == printed) == (what not in known.not_reproduced), what
    if known.also_gflops:
        assert known.also_reason and rounded(cost.gflops, known.also_gflops) != known.also_gflops


@pytest.mark.parametrize("name", NETWORKS)
def test_medical_networks_are_counted_otherwise(name):
    """tests/profiling/test_medical_flops.py has the rules of their counters."""
    known = NETWORKS[name]
    assert bool(known.gflops) == bool(known.counter)
    if known.gflops:
        assert rounded(count(zoo.network_cost, name).gflops, known.gflops) != known.gflops


@pytest.mark.slow
def test_the_pages_are_fresh():
    """Here, because the costs that the tests above counted are counted once in a process."""
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    for page, text in count(zoo.pages, REPO).items():
        assert page.read_text() == text, f"{page.relative_to(REPO)} is stale: run `make zoo`"


def test_every_config_of_a_published_run_exists_and_is_named_by_its_entry():
    recipes = {str(path.relative_to(REPO)) for path in zoo.recipes(REPO / "configs" / "classification")}
    assert {known.config for known in PUBLISHED.values()} <= recipes
    assert all((REPO / config).stem == known.name and (REPO / config).is_file() for config, known in RUNS.items())


def test_the_data_files_and_the_models_name_the_same_papers():
    for name in PUBLISHED:
        cfg = timm.get_pretrained_cfg(name)
        collection = next(c for c in COLLECTIONS.values() for v in c.variants if name.partition(".")[0] in expand(v))
        assert collection.title == cfg.paper_name and collection.code == cfg.origin_url
        assert collection.paper == f"https://arxiv.org/abs/{cfg.paper_ids.removeprefix('arXiv:')}"
        assert collection.license == cfg.license


def test_the_default_training_speaks_for_a_model():
    assert published("vssd_tiny") is PUBLISHED["vssd_tiny.in1k"]
    assert published("vssd_tiny.mesa_in1k") is PUBLISHED["vssd_tiny.mesa_in1k"]
    assert published("vmamba_tiny_m2") is None and published("resnet50") is None and published("no_such.tag") is None


def test_names_of_variants():
    assert expand("net_{tiny,small}_v0") == ["net_tiny_v0", "net_small_v0"]
    assert expand("net") == ["net"]


GOOD = """\
Collections:
- {Name: Net, Paper: {Title: A net, URL: "https://a"}, Code: {URL: "https://b"}, License: mit, Source: README}
Models:
- Name: net.in1k
  In Collection: Net
  Metadata: {FLOPs: 5.0 G}
  Results:
  - {Task: Image Classification, Dataset: ImageNet-1k, Metrics: {Top 1 Accuracy: "80.0"}}
  Config: configs/classification/net.py
"""


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("FLOPs: 5.0 G", "FLOP: 5.0 G", "'FLOP'"),
        ("FLOPs: 5.0 G", "FLOPs: 5.0", "'FLOPs'"),
        ('"80.0"', "80.0", "'Top 1 Accuracy'"),
        (", License: mit", "", "'License'"),
        ("In Collection: Net", "In Collection: Other", "'Other'"),
        ("Dataset: ImageNet-1k, ", "", "'Dataset'"),
        ("configs/classification/net.py", "net.py", "'Config'"),
        ("  Config: configs/classification/net.py\n", "", "'Input Size'"),
    ],
)
def test_a_wrong_or_missing_field_is_named(tmp_path, old, new, named):
    path = tmp_path / "net.yml"
    path.write_text(GOOD)
    assert read_file(path).trainings["net.in1k"].top1 == "80.0"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError) as error:
        read_file(path)
    assert "net.yml" in str(error.value) and named in str(error.value) and "Net" in str(error.value).title()


@pytest.mark.parametrize("text", ["Models: [", "- 1", "Collections: []", "Collections: {}\nModels: []"])
def test_what_is_no_data_file(tmp_path, text):
    path = tmp_path / "net.yml"
    path.write_text(text)
    with pytest.raises(UserError, match="net.yml"):
        read_file(path)


def test_every_official_vector_was_measured():
    deviations = json.loads(RECORD.read_text())["deviations"]
    assert set(deviations) == set(parity.names().values())
    assert all(0 < value < 1e-2 for kinds in deviations.values() for kind in kinds.values() for value in kind.values())


@pytest.mark.parametrize(("counted", "reason"), [(5.06, ""), (4.96, "another counter")])
def test_another_count_needs_a_reason(counted, reason):
    with pytest.raises(UserError, match="'net' has 5.0"):
        zoo.disagreement("net", "FLOPs", counted, "5.0", reason)


def test_every_model_is_in_a_table():
    listed = [name for collection in COLLECTIONS.values() for group in collection.variants for name in expand(group)]
    assert sorted(listed) == sorted(name for name in vssm.list_models() if not name.endswith("_pico"))


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

"""Pictures of measured rows: what is drawn, and from which rows."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from vssm._cli import run
from vssm._errors import UserError
from vssm.profiling import read_results
from vssm.published import published
from vssm.viz import plot_accuracy, plot_costs, plot_resolution
from vssm.viz.palette import BASELINE

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import benchmark as tool  # noqa: E402

RESULTS = ROOT / "benchmarks/results/2026-11-22_models_cpu.json"


def row(model, images_per_s=10.0, side=224, batch=1, **others):
    return {
        "model": model,
        "input": [3, side, side],
        "batch": batch,
        "mode": "infer",
        "dtype": "float32",
        "params": 1,
        "gflops": 1.0,
        "images_per_s": images_per_s,
        "milliseconds": {"median": 1.0},
        **others,
    }


def points(ax):
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in ax.lines if len(line.get_xydata())}


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def top1(name):
    return float(published(name).top1)


def test_accuracy_of_families(tmp_path):
    rows = [
        row("groupmamba_small", 5.0, gflops=7.2),
        row("groupmamba_tiny", 9.0, gflops=4.7),
        row("vmamba_tiny_s1l8", 8.0, gflops=4.9),
        row("vmamba_small_s1l20", 4.0, gflops=8.6),
        row("vmamba_tiny_s1l8", 1.0, gflops=4.9, **{"scan backend": "reference"}),  # the first row counts
        row("vmamba_tiny_v0", 7.0, side=256),  # the accuracy is for 224 px
        row("vmamba_base_v0", failed="OutOfMemoryError"),
        row("resnet50"),
        row("vssd_tiny", 20.0, batch=8, gflops=4.5),
        row("convnext_tiny", 6.0, gflops=4.45),
    ]
    figure = plot_accuracy(rows, tmp_path / "a.png")
    one, gflops = figure.axes  # of batches of 8 there are fewer
    assert points(one) == {
        "GroupMamba": [(9.0, top1("groupmamba_tiny")), (5.0, top1("groupmamba_small"))],
        "VMamba s1": [(8.0, top1("vmamba_tiny_s1l8")), (4.0, top1("vmamba_small_s1l20"))],
        "ConvNeXt": [(6.0, 82.1)],
    }
    assert points(gflops)["VMamba s1"] == [(4.9, top1("vmamba_tiny_s1l8")), (8.6, top1("vmamba_small_s1l20"))]
    assert points(gflops)["VSSD"] == [(4.5, top1("vssd_tiny"))] and len(points(gflops)) == 4
    # Every line is named at its end, in its colour, the most accurate first, and a model of others is grey.
    names = {text.get_text(): text.get_color() for text in gflops.texts}
    assert list(names) == ["GroupMamba", "VSSD", "VMamba s1", "ConvNeXt"]
    assert names == {line.get_label(): line.get_color() for line in gflops.lines} and len(set(names.values())) == 4
    assert names["ConvNeXt"] == BASELINE
    heights = [text.get_position()[1] for text in gflops.texts]
    assert all(above - below > 0.04 for above, below in zip(heights, heights[1:], strict=False))
    assert "batches of 1" in one.get_xlabel() and any("not measured here" in text.get_text() for text in figure.texts)
    width, height = size(tmp_path / "a.png")
    assert width > 1000 and height > 500


def test_accuracy_of_the_recorded_run(tmp_path):
    rows = read_results(RESULTS)
    with_accuracy = {r["model"] for r in rows if published(r["model"])}
    figure = plot_costs(rows, tmp_path / "a.png")
    for ax in figure.axes:
        assert sum(map(len, points(ax).values())) == len(with_accuracy) + 5 == 30  # and five of timm's
    assert any("2 threads" in text.get_text() for text in figure.texts)


def test_resolution(tmp_path):
    rows = [row("vmamba_pico", 40.0 / k, 32 * k, mebibytes=k) for k in (2, 1, 4)]
    rows += [row("test_resnet", 80.0 / k, 32 * k, mebibytes=2 * k) for k in (1, 2)]
    rows.append(row("test_resnet", 1.0, 128, failed="OutOfMemoryError"))
    figure = plot_costs(rows, tmp_path / "r.png")
    speed, memory = figure.axes
    assert points(speed) == {
        "vmamba_pico": [(32, 40.0), (64, 20.0), (128, 10.0)],
        "test_resnet": [(32, 80.0), (64, 40.0)],
    }
    assert points(memory)["test_resnet"] == [(32, 2), (64, 4)]
    assert [tick.get_text() for tick in speed.get_xticklabels()] == ["32", "64", "128"]
    assert size(tmp_path / "r.png")[0] > 1000

    without = [{key: value for key, value in r.items() if key != "mebibytes"} for r in rows]
    assert len(plot_resolution(without, tmp_path / "r.png").axes) == 1


def test_lines_are_told_apart_by_what_differs(tmp_path):
    rows = [row("vmamba_pico", 1.0, side, **{"scan backend": b}) for side in (32, 64) for b in ("cpp", "torch")]
    rows += [row("test_resnet", 1.0, side, **{"scan backend": None}) for side in (32, 64)]
    (ax,) = plot_costs(rows, tmp_path / "r.png").axes
    assert set(points(ax)) == {"vmamba_pico, cpp", "vmamba_pico, torch", "test_resnet"}


@pytest.mark.parametrize("draw", [plot_accuracy, plot_resolution])
def test_nothing_to_draw(tmp_path, draw):
    with pytest.raises(UserError, match="Nothing to draw: no model"):
        draw([row("vmamba_tiny_s1l8", failed="ValueError")], tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_tool_draws_what_was_saved(tmp_path, capsys):
    assert run(tool.main, ["--from", str(RESULTS), "--plot", str(tmp_path / "p.png")]) == 0
    assert size(tmp_path / "p.png")[0] > 1000
    assert "| swin_tiny_patch4_window7_224 " in capsys.readouterr().out


def test_tool_draws_what_it_measured(tmp_path):
    pytest.importorskip("fvcore")
    words = ["test_resnet", "--img-size", "32", "64", "--rounds", "1", "--plot", str(tmp_path / "p.svg")]
    assert run(tool.main, words) == 0
    assert "<svg" in (tmp_path / "p.svg").read_text()

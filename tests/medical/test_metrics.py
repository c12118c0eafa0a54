"""Dice, HD95, Jaccard and surface distance against recorded values, conventions for empty masks, tables."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from vssm.engine import ConfigError
from vssm.medical.metrics import PooledMetric, VolumeMetric, score_masks, score_volume, surface_distances
from vssm.medical.report import best_slices, write_tables
from vssm.medical.transforms import resize

RECORD = json.loads((Path(__file__).parents[1] / "data/parity/medical_metrics.json").read_text())


def ellipsoids():
    """The volumes that the record describes: ground truth, a prediction A, and A with one stray voxel."""
    z, y, x = np.mgrid[:6, :40, :44]
    truth = 4 * (z - 2.5) ** 2 + (y - 20) ** 2 + (x - 22) ** 2 <= 120
    a = 4 * (z - 2.5) ** 2 + (y - 22) ** 2 + (x - 19) ** 2 <= 100
    b = a.copy()
    b[0, 0, 0] = True
    return truth, a, b


@pytest.mark.parametrize(
    ("name", "spacing"), [("A_unit", None), ("B_unit", None), ("A_spacing_3_1_1", (3, 1, 1)), ("slice2d_z2_A", None)]
)
def test_recorded_values(name, spacing):
    truth, a, b = ellipsoids()
    assert {"gt": truth.sum(), "A": a.sum(), "B": b.sum()} == RECORD["voxels"]
    prediction = b if name.startswith("B") else a
    if name.startswith("slice2d"):
        truth, prediction = truth[2], prediction[2]
    expected, scores = RECORD[name], score_masks(prediction, truth, spacing)
    for ours, theirs in (("dice", "dice"), ("jaccard", "jc"), ("hd95", "hd95")):
        assert scores[ours] == pytest.approx(expected[theirs], rel=1e-8)
    there, back = surface_distances(prediction, truth, spacing)
    assert there.mean() == pytest.approx(expected["asd_pg"], rel=1e-8)
    assert back.mean() == pytest.approx(expected["asd_gp"], rel=1e-8)
    assert scores["asd"] == pytest.approx((expected["asd_pg"] + expected["asd_gp"]) / 2, rel=1e-8)
    assert max(there.max(), back.max()) == pytest.approx(expected["hd"], rel=1e-8)


def test_the_box_around_both_changes_nothing():
    random = np.random.default_rng(0)
    prediction, truth = (random.random((7, 20, 20)) < 0.05 for _ in range(2))
    small = surface_distances(prediction, truth, (2.0, 1.0, 0.5))
    around = [np.pad(mask, 30) for mask in (prediction, truth)]
    large = surface_distances(*around, (2.0, 1.0, 0.5))
    for one, other in zip(small, large, strict=True):
        assert np.array_equal(np.sort(one), np.sort(other))


def test_monais_hausdorff_is_another_number():
    """It takes the larger of the two directions' percentiles; the protocol pools the distances."""
    compute = pytest.importorskip("monai.metrics").compute_hausdorff_distance
    truth, a, _ = ellipsoids()
    theirs = compute(a[None, None], truth[None, None], include_background=True, percentile=95).item()
    assert theirs != pytest.approx(RECORD["A_unit"]["hd95"], rel=1e-2)


@pytest.mark.parametrize("name", ["order3_24x24", "order3_7x7", "order0_24x24", "order0_7x7"])
def test_recorded_resizing(name):
    order, size = int(name[5]), tuple(map(int, name[7:].split("x")))
    if order:
        array = np.random.RandomState(0).standard_normal((10, 12))
    else:
        array = np.random.RandomState(1).randint(0, 9, (10, 12))
    resized, record = resize(array, size, order), RECORD["zoom"][name]
    assert resized.shape == size
    found = {"size": resized.size, "mean": resized.mean(), "std": resized.std(), "l2": np.linalg.norm(resized)}
    for key, value in found.items():
        assert value == pytest.approx(record[key], rel=1e-8), key
    probe = resized.ravel()[np.linspace(0, resized.size - 1, 16).astype(int)]
    np.testing.assert_allclose(probe, record["probe"], rtol=1e-6)


# prediction there, truth there -> Dice, HD95
EMPTY = {
    "transunet": {(1, 0): (1, 0), (0, 1): (0, 0), (0, 0): (0, 0)},
    "clean": {(1, 0): (0, None), (0, 1): (0, None), (0, 0): (None, None)},
}


@pytest.mark.parametrize("convention", EMPTY)
@pytest.mark.parametrize("there", [(1, 0), (0, 1), (0, 0)])
def test_empty_masks(convention, there):
    masks = [np.full((2, 3, 3), bool(flag)) for flag in there]
    scores = score_masks(*masks, empty=convention)
    dice, hd95 = EMPTY[convention][there]
    for name, expected in (("dice", dice), ("jaccard", dice), ("hd95", hd95), ("asd", hd95)):
        assert np.isnan(scores[name]) if expected is None else scores[name] == expected, name


def evaluate(samples, classes=("background", "liver", "spleen"), **options):
    metric = VolumeMetric(**options)
    metric.dataset_meta = {"classes": classes}
    metric.process(None, samples)
    return metric, metric.evaluate(len(samples))


def volumes(spacing=None):
    truth, a, _ = ellipsoids()
    label, prediction = truth.astype(np.uint8), a.astype(np.uint8)
    label[:, :3, :3] = 2
    other = prediction.copy()
    other[:, :3, :3] = 2
    return [
        dict(prediction=prediction, label=label, meta=dict(case="one", spacing=spacing)),
        dict(prediction=other, label=label, meta=dict(case="two", spacing=spacing)),
    ]


def test_means_over_cases_then_classes():
    _, metrics = evaluate(volumes())
    dice, hd95 = 100 * RECORD["A_unit"]["dice"], RECORD["A_unit"]["hd95"]
    assert metrics["dice/liver"] == pytest.approx(dice) and metrics["hd95/liver"] == pytest.approx(hd95)
    # The spleen is missed in one of two cases: Dice 0, HD95 0.
    assert metrics["dice/spleen"] == 50 and metrics["hd95/spleen"] == 0
    assert metrics["dice/mean"] == pytest.approx((dice + 50) / 2)
    assert metrics["hd95/mean"] == pytest.approx(hd95 / 2)
    assert not any("mm" in name for name in metrics)


def test_millimetres_and_the_clean_convention():
    metric, metrics = evaluate(volumes((3.0, 1.0, 1.0)), measures=("dice", "hd95", "asd"), empty="clean")
    assert metrics["hd95_mm/liver"] == pytest.approx(RECORD["A_spacing_3_1_1"]["hd95"])
    assert metrics["hd95/liver"] == pytest.approx(RECORD["A_unit"]["hd95"])
    assert metrics["dice/spleen"] == 50 and metrics["hd95/spleen"] == 0
    rows = metric.table()
    assert rows[0] == ["measure", "case", "mean", "liver", "spleen"]
    missed = next(row for row in rows if row[:2] == ["hd95 (mm)", "one"])
    assert missed[4] == "–" and missed[2] == missed[3] == "4.00"


def test_tables(tmp_path):
    metric, metrics = evaluate(volumes())
    files = write_tables(metric.table(), tmp_path / "deep" / "organs")
    with open(files[0], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["one", "two", "mean"] * 2
    assert rows[2]["measure"] == "dice (%)" and float(rows[2]["mean"]) == pytest.approx(metrics["dice/mean"], abs=0.005)
    lines = files[1].read_text().splitlines()
    assert len(lines) == 8 and set(lines[1]) == {"|", "-"}
    assert all(line.count("|") == 6 for line in lines)


def test_typos_are_found_before_any_volume():
    with pytest.raises(ConfigError, match="not 'hd96'"):
        VolumeMetric(measures=("dice", "hd96"))
    with pytest.raises(ConfigError, match="'transunet', 'clean'.*not 'nice'"):
        VolumeMetric(empty="nice")


def test_score_volume_leaves_the_background_out():
    label = np.zeros((2, 4, 4), dtype=np.uint8)
    label[0, :2] = 1
    rows = score_volume(label, label, 3, measures=("dice",))
    assert rows == [{"dice": 1.0}, {"dice": 0.0}]


def test_pooled_pixels():
    random = np.random.default_rng(0)
    pairs = [(random.random((5, 6)) < 0.4, random.random((5, 6)) < 0.5) for _ in range(3)]
    metric = PooledMetric()
    metric.process(None, [dict(prediction=p.astype(int), label=t.astype(int)) for p, t in pairs])
    found = metric.evaluate(3)
    p, t = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    tp, fp, fn, tn = (p & t).sum(), (p & ~t).sum(), (~p & t).sum(), (~p & ~t).sum()
    assert found["iou"] == pytest.approx(100 * tp / (tp + fp + fn))
    assert found["dice"] == pytest.approx(200 * tp / (2 * tp + fp + fn))
    assert found["accuracy"] == pytest.approx(100 * (tp + tn) / 90)
    assert found["specificity"] == pytest.approx(100 * tn / (tn + fp))
    assert found["sensitivity"] == pytest.approx(100 * tp / (tp + fn))


def test_best_slices():
    label = np.zeros((10, 4, 4))
    label[2, :2], label[3], label[8, 0] = 1, 1, 1
    assert best_slices(label, 2) == [3, 8]
    assert len(best_slices(np.zeros((4, 2, 2)), 3)) == 3

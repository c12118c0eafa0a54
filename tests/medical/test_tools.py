"""Training, testing, predicting and preparing from end to end, and what the tools say when something is wrong."""

import csv
import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vssm._cli import run
from vssm.medical.data import Synapse

from .conftest import CONFIGS, REPO, write_isic, write_nifti, write_nifti_folder, write_synapse

sys.path.insert(0, str(REPO / "tools"))
import predict as predict_tool  # noqa: E402
import prepare_data as prepare_tool  # noqa: E402
import test as test_tool  # noqa: E402
import train as train_tool  # noqa: E402

# pytest collects names that start with "test" from modules it imports.
test_tool.main.__test__ = False

NETWORK = "dict(decoder='unet', encoder='vmamba_pico', num_classes={classes}, in_chans={chans})"


def call(tool, *words):
    """Run a tool in this process; returns its exit code."""
    return run(tool.main, [str(word) for word in words])


def sentence(capsys, tool, *words):
    """The one line that a tool prints about a mistake."""
    capsys.readouterr()
    assert call(tool, *words) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "Traceback" not in err, err
    return err


def small(base, folder, network, **loaders):
    """A copy of a config with a small network, small images and few of them at once."""
    options = "".join(
        f"{name}_dataloader = dict(num_workers=0, pin_memory=False, dataset=dict({text}))\n"
        for name, text in loaders.items()
    )
    path = folder / f"small_{base}_{folder.name}.py".replace("-", "_")
    path.write_text(
        f'_base_ = ["{CONFIGS}/{base}.py"]\n'
        f"model = dict(network=dict(_delete_=True, **{network}))\n"
        f"{options}"
        "train_dataloader.update(batch_size=4)\n"
    )
    return path


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    """The MNI152 template as the mini data set, and a short run on it: (data, config, work dir)."""
    pytest.importorskip("nilearn")
    folder = tmp_path_factory.mktemp("brain")
    assert call(prepare_tool, "mni152", folder / "data") == 0
    config = folder / "brain.py"
    data = f'root="{folder}/data/nifti"'
    config.write_text(
        f'_base_ = ["{CONFIGS}/unet-vmamba-pico_mni152.py"]\n'
        f"train_dataloader = dict(dataset=dict({data}, transform=dict(size=64)))\n"
        f"val_dataloader = dict(dataset=dict({data}))\n"
        f"test_dataloader = dict(dataset=dict({data}))\n"
        "val_cfg = dict(size=64)\ntest_cfg = dict(size=64)\n"
        'param_scheduler = [dict(type="CosineAnnealingLR", T_max=7, by_epoch=True, end=7)]\n'
        "train_cfg = dict(max_epochs=7, val_interval=2)\n"
    )
    assert call(train_tool, config, "--work-dir", folder / "wd") == 0
    return folder / "data", config, folder / "wd"


@pytest.mark.slow
def test_dice_rises_on_the_brain_template(brain):
    _, _, work_dir = brain
    records = [json.loads(line) for line in next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    dice = [record["dice/mean"] for record in records if "dice/mean" in record]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(dice) == 4 and dice[-1] > dice[0] + 10 and dice[-1] > 55, dice
    assert losses[-1] < 0.6 * losses[0]
    assert any(path.name.startswith("best_dice_mean_epoch_") for path in work_dir.iterdir())


@pytest.mark.slow
def test_testing_writes_tables(brain, tmp_path, capsys):
    _, config, work_dir = brain
    out = tmp_path / "m.json"
    assert call(test_tool, config, work_dir / "epoch_7.pth", "--work-dir", tmp_path, "--out", out) == 0
    metrics = json.loads(out.read_text())
    assert {"dice/mean", "dice/grey matter", "dice/white matter", "hd95/mean", "hd95_mm/mean"} <= set(metrics)
    assert f"dice/mean: {metrics['dice/mean']:.4g}" in capsys.readouterr().out
    # Voxels of 1 mm.
    assert metrics["hd95/mean"] == pytest.approx(metrics["hd95_mm/mean"])
    with open(tmp_path / "organs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["mni152_test", "mean"] * 3
    assert float(rows[1]["mean"]) == pytest.approx(metrics["dice/mean"], abs=0.006)
    with Image.open(tmp_path / "mni152_test.png") as picture:
        assert min(picture.size) > 300
    assert (tmp_path / "organs.md").read_text().startswith("| measure | case | mean | grey matter | white matter |")


@pytest.mark.slow
def test_predicting_volumes(brain, tmp_path, capsys):
    import nibabel

    data, config, work_dir = brain
    source = nibabel.load(data / "nifti" / "test" / "images" / "mni152_test.nii.gz")
    # Stored in another orientation, the answer comes in that orientation too.
    folder = tmp_path / "volumes"
    folder.mkdir()
    turned = source.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nibabel.save(source, folder / "straight.nii.gz")
    nibabel.save(turned, folder / "turned.nii")
    weights = work_dir / "epoch_7.pth"
    assert call(predict_tool, config, weights, folder, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out.split()
    names = {"straight_label.nii.gz", "straight_overlay.png", "turned_label.nii.gz", "turned_overlay.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names and len(printed) == 4
    labels = {name: nibabel.load(tmp_path / "out" / f"{name}_label.nii.gz") for name in ("straight", "turned")}
    for name, original in (("straight", source), ("turned", turned)):
        assert labels[name].shape == original.shape and labels[name].get_data_dtype() == np.uint8
        np.testing.assert_allclose(labels[name].affine, original.affine)
    straight = np.asarray(labels["straight"].dataobj)
    assert set(np.unique(straight)) <= {0, 1, 2}
    assert np.array_equal(nibabel.as_closest_canonical(labels["turned"]).dataobj, straight)
    # The same labels that the test scores.
    truth = np.asarray(nibabel.load(data / "nifti" / "test" / "labels" / "mni152_test.nii.gz").dataobj)
    assert call(test_tool, config, weights, "--work-dir", tmp_path, "--out", tmp_path / "m.json") == 0
    grey = 200 * ((straight == 1) & (truth == 1)).sum() / ((straight == 1).sum() + (truth == 1).sum())
    assert json.loads((tmp_path / "m.json").read_text())["dice/grey matter"] == pytest.approx(grey)


@pytest.mark.slow
def test_broken_volumes_are_reported_together_and_nothing_is_written(brain, tmp_path, capsys):
    _, config, work_dir = brain
    weights, folder = work_dir / "epoch_7.pth", tmp_path / "volumes"
    fine = np.random.default_rng(0).random((20, 24, 4)).astype(np.float32)
    write_nifti(folder / "a_fine.nii.gz", fine)
    write_nifti(folder / "b_nan.nii.gz", np.where(fine > 0.9, np.nan, fine))
    write_nifti(folder / "c_four.nii.gz", np.stack([fine, fine], axis=-1))
    (folder / "d_bad.nii.gz").write_bytes(b"no volume")
    said = sentence(capsys, predict_tool, config, weights, folder, tmp_path / "none.nii", "--out", tmp_path / "out")
    assert "4 files cannot be used." in said
    for part in (r"b_nan.nii.gz' has \d+ voxels that are NaN", "c_four.nii.gz' has the shape", "d_bad.nii.gz' cannot"):
        assert re.search(part, said), part
    assert "none.nii' does not exist" in said and "a_fine" not in said
    assert not (tmp_path / "out").exists()
    again = write_nifti(tmp_path / "a_fine.nii", fine)
    said = sentence(capsys, predict_tool, config, weights, folder / "a_fine.nii.gz", again, "--out", tmp_path / "out")
    assert "Two inputs are named 'a_fine'" in said
    (tmp_path / "empty").mkdir()
    said = sentence(capsys, predict_tool, config, weights, tmp_path / "empty", "--out", tmp_path / "out")
    assert "holds no NIfTI volume" in said


@pytest.mark.slow
def test_a_checkpoint_of_another_network(brain, tmp_path, capsys):
    data, config, work_dir = brain
    foreign = tmp_path / "foreign.pth"
    weights = torch.load(work_dir / "epoch_7.pth", weights_only=True)["state_dict"]
    weights = {key.replace("decoder", "other"): value for key, value in weights.items()}
    torch.save({"state_dict": weights}, foreign)
    volume = data / "nifti" / "test" / "images"
    for tool, words in ((test_tool, ["--work-dir", tmp_path]), (predict_tool, [volume, "--out", tmp_path / "out"])):
        said = sentence(capsys, tool, config, foreign, *words)
        assert "foreign.pth' cannot be loaded" in said and "missing model.decoder" in said
    assert "give --out DIR" in sentence(capsys, predict_tool, config, foreign, volume)


@pytest.mark.slow
def test_the_template_in_synapses_layout(brain):
    root = str(brain[0] / "synapse")
    options = dict(classes=("background", "grey matter", "white matter"), validation=["mni152_val"])
    train = Synapse(root, "train", dict(size=32), **options)
    assert len(train) == 56
    val, test = Synapse(root, "val", **options)[0], Synapse(root, "test", **options)[0]
    assert len(val["image"]) == 10 and test["image"].shape == (16, 233, 197)
    for sample in (val, test):
        assert sample["label"].unique().tolist() == [0, 1, 2]
        # White matter is brighter than grey matter in a T1 image.
        white, grey = (sample["image"][sample["label"] == k].mean() for k in (2, 1))
        assert white > grey + 0.1


def test_a_synapse_run(tmp_path, capsys):
    """MSVM-UNet's recipe from the first epoch to the test's table, with a small network on made-up volumes."""
    root = write_synapse(tmp_path / "data")
    where = f'root="{root}"'
    network = NETWORK.format(classes=9, chans=3)
    train = f"{where}, transform=dict(size=32)"
    config = small("msvm-unet-tiny_synapse", tmp_path, network, train=train, val=where, test=where)
    text = config.read_text() + "train_cfg = dict(max_epochs=2, val_interval=1)\n"
    text += "val_cfg = dict(size=32)\ntest_cfg = dict(size=32)\n"
    config.write_text(
        text + "custom_hooks = [dict(type='FreezeEncoderHook', epochs=1), dict(type='TrainLossHook', save_best=True)]\n"
    )
    assert call(train_tool, config, "--work-dir", tmp_path / "wd") == 0
    assert (tmp_path / "wd" / "best_train_loss.pth").is_file()
    first, second = (torch.load(tmp_path / "wd" / f"epoch_{n}.pth", weights_only=True)["state_dict"] for n in (1, 2))
    moved = {key for key in first if first[key].is_floating_point() and not torch.equal(first[key], second[key])}
    assert any(".encoder." in key for key in moved) and any(".decoder." in key for key in moved)
    assert call(test_tool, config, tmp_path / "wd" / "epoch_2.pth", "--work-dir", tmp_path / "test") == 0
    with open(tmp_path / "test" / "organs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["measure"] for row in rows} == {"dice (%)", "hd95 (voxels)", "jaccard (%)", "asd (voxels)"}
    assert list(rows[0])[3:] == [
        "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach",
    ]  # fmt: skip
    assert [row["case"] for row in rows[:3]] == ["case0008", "case0022", "mean"]
    capsys.readouterr()
    # What is wrong with a file in the middle of a run is one sentence too.
    np.savez(root / "train_npz" / "case0005_slice002.npz", image=np.ones((4, 4)), label=np.full((4, 4), 12))
    said = sentence(
        capsys, train_tool, config, "--work-dir", tmp_path / "again",
        "--cfg-options", "train_dataloader.dataset.label_order=transunet",
    )  # fmt: skip
    assert "case0005_slice002.npz' has the label 12, but the classes are 0 to 8" in said


def test_an_isic_run(tmp_path, capsys):
    root = write_isic(tmp_path / "data")
    where = f'root="{root}", transform=dict(size=32)'
    network = NETWORK.format(classes=1, chans=3)
    config = small("vm-unet_isic18", tmp_path, network, train=where, val=where, test=where)
    config.write_text(config.read_text() + "train_cfg = dict(max_epochs=2)\n")
    assert call(train_tool, config, "--work-dir", tmp_path / "wd") == 0
    weights = tmp_path / "wd" / "epoch_2.pth"
    assert any(path.name.startswith("best_dice_epoch_") for path in (tmp_path / "wd").iterdir())
    out = tmp_path / "m.json"
    assert call(test_tool, config, weights, "--work-dir", tmp_path, "--out", out) == 0
    assert set(json.loads(out.read_text())) >= {"iou", "dice", "accuracy", "specificity", "sensitivity"}
    photos = root / "val" / "images"
    assert call(predict_tool, config, weights, photos, "--out", tmp_path / "out") == 0
    masks = sorted((tmp_path / "out").glob("*_mask.png"))
    assert len(masks) == 3 and len(list((tmp_path / "out").iterdir())) == 6
    mask = Image.open(masks[0])
    assert mask.size == (40, 30) and set(np.unique(np.asarray(mask))) <= {0, 255}
    (photos / "zzz.png").write_bytes(b"no image")
    (photos / "yyy.jpg").write_bytes(b"")
    said = sentence(capsys, predict_tool, config, weights, photos, "--out", tmp_path / "more")
    assert "2 files cannot be used" in said and "zzz.png" in said and "yyy.jpg" in said
    assert not (tmp_path / "more").exists()


def btcv(folder, cases):
    """Volumes and labels in the challenge's names and numbers, 13 organs."""
    random = np.random.default_rng(0)
    for case in cases:
        label = random.integers(0, 14, (12, 10, 3)).astype(np.int16)
        write_nifti(folder / "img" / f"img{case}.nii.gz", label * 100 - 400)
        write_nifti(folder / "label" / f"label{case}.nii.gz", label.astype(np.uint8))
    return folder / "img", folder / "label"


def test_preparing_synapse(tmp_path, capsys):
    images, labels = btcv(tmp_path, ("0005", "0008"))
    out = tmp_path / "out"
    assert call(prepare_tool, "synapse-nifti", images, labels, out) == 0
    assert "28 of the split's 30 cases are not there" in capsys.readouterr().out
    train = Synapse(str(out), "train", protocol="published", label_order="transunet", transform=dict(size=12))
    test = Synapse(str(out), "test", label_order="transunet")[0]
    assert len(train) == 3 and test["image"].shape == (3, 10, 12)
    # The challenge's numbers are seen in the intensities: -400 + 100 n HU, clipped to [-125, 275] and scaled.
    for number, organ in ((3, 3), (4, 2), (6, 5)):
        where = test["label"] == organ
        assert where.any() and np.allclose(
            test["image"][where], (number * 100 - 400 + 125) / 400 if number > 2 else 0, atol=1e-6
        )
    assert test["image"].min() == 0 and test["image"].max() == 1
    assert "not empty; say --overwrite" in sentence(capsys, prepare_tool, "synapse-nifti", images, labels, out)
    assert call(prepare_tool, "synapse-nifti", images, labels, out, "--overwrite") == 0


def test_preparing_reports_all_broken_volumes_and_writes_nothing(tmp_path, capsys):
    images, labels = btcv(tmp_path, ("0005", "0006", "0008"))
    (images / "img0005.nii.gz").write_bytes(b"bad")
    write_nifti(labels / "label0008.nii.gz", np.full((12, 10, 3), 77, np.uint8))
    said = sentence(capsys, prepare_tool, "synapse-nifti", images, labels, tmp_path / "out")
    assert "2 files cannot be used" in said and "img0005" in said and "label0008.nii.gz' has the label 77" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["img", "label"]
    (labels / "label0006.nii.gz").unlink()
    said = sentence(capsys, prepare_tool, "synapse-nifti", images, labels, tmp_path / "out")
    assert "only one has 0006" in said
    assert "does not exist" in sentence(capsys, prepare_tool, "synapse-nifti", images, tmp_path / "no", tmp_path / "o")


def test_preparing_acdc(tmp_path, capsys):
    random = np.random.default_rng(0)
    for patient in ("001", "002", "019"):
        folder = tmp_path / "acdc" / f"patient{patient}"
        for frame in ("01", "12"):
            label = random.integers(0, 4, (8, 6, 2)).astype(np.uint8)
            write_nifti(folder / f"patient{patient}_frame{frame}.nii.gz", (label * 50 + 10).astype(np.int16))
            write_nifti(folder / f"patient{patient}_frame{frame}_gt.nii.gz", label)
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\n")
    out = tmp_path / "out"
    assert call(prepare_tool, "acdc-nifti", tmp_path / "acdc", out) == 0
    names = {str(path.relative_to(out)) for path in out.rglob("*.npz")}
    expected = {f"train/case_001_slice{phase}_{n}.npz" for phase in ("ED", "ES") for n in (0, 1)}
    expected |= {f"valid/case_019_slice{phase}_{n}.npz" for phase in ("ED", "ES") for n in (0, 1)}
    assert names == expected | {f"test/case_002_volume_{phase}.npz" for phase in ("ED", "ES")}
    with np.load(out / "test" / "case_002_volume_ES.npz") as file:
        assert file["img"].shape == (2, 6, 8)
        np.testing.assert_allclose(file["img"], file["label"] / 1.5 - 1, atol=1e-6)
    (tmp_path / "acdc" / "patient019" / "Info.cfg").write_text("ED: 1\n")
    (tmp_path / "acdc" / "patient002" / "patient002_frame12_gt.nii.gz").unlink()
    said = sentence(capsys, prepare_tool, "acdc-nifti", tmp_path / "acdc", tmp_path / "other")
    assert "does not say which frame is ES" in said and "patient002_frame12_gt.nii.gz' does not exist" in said


def test_a_nifti_folder_run_says_what_is_missing(tmp_path, capsys):
    root = write_nifti_folder(tmp_path / "data")
    (root / "val" / "labels" / "v1.nii.gz").unlink()
    config = CONFIGS / "unet-vmamba-pico_mni152.py"
    words = ["--work-dir", tmp_path / "wd", "--cfg-options", f"val_dataloader.dataset.root={root}"]
    said = sentence(capsys, train_tool, config, *words, f"train_dataloader.dataset.root={root}")
    assert "v1.nii.gz" in said and "no partner" in said

"""nnU-Net's own functions with our networks: plan, preprocess, train, resume, predict, evaluate; and the raw layout."""

import json
import multiprocessing
import os
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vssm import commands
from vssm._cli import run
from vssm.medical import create_unet
from vssm.medical.nnunet.network import SupervisedUNet
from vssm.medical.volume_encoders import create_volume_encoder

from .conftest import write_nifti_folder


def vssm(*words):
    """Run the command in this process; returns its exit code."""
    return run(commands.main, [str(word) for word in words])


# Of any size, cropped to what nnU-Net makes of the labels: round(size * scale), which is below what the network gives.
@pytest.mark.parametrize(
    ("options", "size", "sizes"),
    [
        (dict(encoder="vmamba_pico"), (42, 58), [(42, 58), (10, 14), (5, 7), (3, 4)]),
        (dict(encoder="vmamba_pico", decoder="msvm"), (42, 58), [(42, 58), (10, 14), (5, 7), (3, 4)]),
        (dict(encoder="vmamba3d_pico", spatial_dims=3), (6, 10, 13), [(6, 10, 13), (3, 5, 6), (2, 2, 3)]),
    ],
)
def test_outputs_of_deep_supervision(options, size, sizes):
    if len(size) == 3:
        pytest.importorskip("monai")
    net = SupervisedUNet(create_unet(num_classes=3, in_chans=2, **options), heads=True, deep_supervision=True)
    assert net.net.training
    net.eval()
    x = torch.randn(1, 2, *size)
    outputs = net(x)
    assert [tuple(y.shape) for y in outputs] == [(1, 3, *wanted) for wanted in sizes]
    assert [tuple(round(n * part) for n, part in zip(size, scale, strict=True)) for scale in net.scales] == sizes
    torch.testing.assert_close(outputs[0], net.net(x), rtol=0, atol=0)
    net.deep_supervision = False
    torch.testing.assert_close(net(x), outputs[0], rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_has_no_nan(precision):
    net = SupervisedUNet(create_unet(encoder="vmamba_pico", num_classes=2, in_chans=1), True, True, precision)
    outputs = net(1e3 * torch.randn(2, 1, 64, 64))
    sum(y.square().mean() for y in outputs).backward()
    assert all(y.dtype == torch.float32 and y.isfinite().all() for y in outputs)
    assert all(p.grad.isfinite().all() for p in net.parameters())
    with pytest.raises(ValueError, match="precision must be"):
        SupervisedUNet(net.net, True, True, "half")


def test_raw_layout(tmp_path, capsys):
    pytest.importorskip("nibabel")
    source = write_nifti_folder(tmp_path / "source", splits=("train", "test"))
    words = ("prepare", "nnunet", source, "--classes", "background", "a", "b", "--test", "test")
    out = tmp_path / "raw" / "Dataset501_Cubes"
    assert vssm(*words[:3], out, *words[3:]) == 0
    found = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert found == {
        "dataset.json",
        "prepared.json",
        "imagesTr/v0_0000.nii.gz",
        "labelsTr/v0.nii.gz",
        "imagesTs/v1_0000.nii.gz",
        "labelsTs/v1.nii.gz",
    }
    assert json.loads((out / "dataset.json").read_text()) == {
        "channel_names": {"0": "0"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    capsys.readouterr()
    assert vssm(*words[:3], tmp_path / "raw" / "Cubes", *words[3:]) == 2
    assert "Dataset501_Brain" in capsys.readouterr().err
    # A label without a class: nothing is written.
    assert vssm(*words[:3], tmp_path / "raw" / "Dataset502_Few", "--classes", "background", "a") == 2
    assert "2" in capsys.readouterr().err and not (tmp_path / "raw" / "Dataset502_Few").exists()


class Settings(SimpleNamespace):
    """What nnU-Net says of a configuration."""

    patch_size = (24, 20, 20)
    pool_op_kernel_sizes = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def test_trainers_by_name():
    pytest.importorskip("nnunetv2", reason="needs the [nnunet] extra")
    from vssm.medical.nnunet.trainer import VSSMTrainer, trainer_named

    plain, single = trainer_named("VSSM"), trainer_named("VSSM_vmamba3d_pico_noDeepSupervision")
    assert issubclass(plain, VSSMTrainer) and plain.encoder is None and plain.deep_supervision
    assert single.encoder == "vmamba3d_pico" and not single.deep_supervision
    with pytest.raises(AttributeError):  # so that nnU-Net goes on to the next file
        trainer_named("nnUNetTrainer")
    with pytest.raises(ValueError, match="did you mean 'vmamba_pico'"):
        trainer_named("VSSM_vmamba_pica")
    # Halved as planned; the third stage halves all, because the plans end.
    net = single.build_network_architecture(None, Settings(), 1, 2)
    assert net.net.stride == (4, 8, 8) and not net.heads
    single.encoder_options = dict(depths=(1, 1))
    assert single.build_network_architecture(None, Settings(), 1, 2).net.stride == (2, 4, 4)
    with pytest.raises(ValueError, match="an encoder of volumes"):
        single.build_network_architecture(None, Settings(patch_size=(24, 20)), 1, 2)


def test_from_plan_to_evaluation(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nnunetv2", reason="needs the [nnunet] extra")
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    assert vssm("env", "--nnunet") == 0
    mine = tmp_path / "trainers"
    mine.mkdir()
    strides = [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    weights = create_volume_encoder("vmamba3d_pico", options=dict(strides=strides)).state_dict()
    torch.save(weights, tmp_path / "encoder.pth")
    (mine / "mine.py").write_text(
        "from vssm.medical.nnunet.trainer import VSSMTrainer\n\n\n"
        "class VSSM_mine(VSSMTrainer):\n"
        "    encoder = 'vmamba3d_pico'\n"
        f"    encoder_options = dict(strides={strides})\n"
        f"    pretrained = {str(tmp_path / 'encoder.pth')!r}\n"
        "    precision = 'bfloat16'\n"
        "    settings = dict(num_epochs=1, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1)\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(mine), capsys.readouterr().out.strip()]))
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder_simple
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import run_training

    source = write_nifti_folder(tmp_path / "source", splits=("train", "test"))
    raw = tmp_path / "raw" / "Dataset501_Cubes"
    assert vssm("prepare", "nnunet", source, raw, "--classes", "background", "a", "b", "--test", "test") == 0

    # nnU-Net's processes import PyTorch for seconds each; threads do the same work.
    context = multiprocessing.get_context
    threads = SimpleNamespace(Pool=ThreadPool)
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind=None: threads if kind == "spawn" else context(kind))
    extract_fingerprints([501], num_processes=1, show_progress_bar=False)
    plan_experiments([501], gpu_memory_target_in_gb=1)
    preprocess([501], configurations=["3d_fullres"], num_processes=[1], show_progress_bar=False)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    run_training("501", "3d_fullres", "all", "VSSM_mine", device=torch.device("cpu"))
    results = tmp_path / "results" / "Dataset501_Cubes" / "VSSM_mine__nnUNetPlans__3d_fullres"
    first = torch.load(results / "fold_all" / "checkpoint_final.pth", weights_only=False)
    assert first["current_epoch"] == 1 and all(w.isfinite().all() for w in first["network_weights"].values())
    # One step of AdamW moves a weight by no more than the learning rate, and its decay.
    moved = [(first["network_weights"][f"net.encoder.{key}"] - weight).abs().max() for key, weight in weights.items()]
    assert 0 < max(moved) < 4e-4

    (mine / "mine.py").write_text((mine / "mine.py").read_text().replace("num_epochs=1", "num_epochs=2"))
    run_training("501", "3d_fullres", "all", "VSSM_mine", continue_training=True, device=torch.device("cpu"))
    second = torch.load(results / "fold_all" / "checkpoint_final.pth", weights_only=False)
    assert second["current_epoch"] == 2
    name = "net.head.weight"
    assert not torch.equal(first["network_weights"][name], second["network_weights"][name])

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(results), ("all",))
    torch.testing.assert_close(predictor.network.state_dict()[name], second["network_weights"][name], rtol=0, atol=0)
    (tmp_path / "out").mkdir()
    predictor.predict_from_files_sequential(str(raw / "imagesTs"), str(tmp_path / "out"))
    nibabel = pytest.importorskip("nibabel")
    answer, truth = (nibabel.load(folder / "v1.nii.gz") for folder in (tmp_path / "out", raw / "labelsTs"))
    assert answer.shape == truth.shape and np.allclose(answer.affine, truth.affine)
    compute_metrics_on_folder_simple(str(raw / "labelsTs"), str(tmp_path / "out"), [1, 2], num_processes=1)
    dice = json.loads((tmp_path / "out" / "summary.json").read_text())["mean"]["1"]["Dice"]
    found, wanted = np.asarray(answer.dataobj) == 1, np.asarray(truth.dataobj) == 1
    assert dice == pytest.approx(2 * (found & wanted).sum() / (found.sum() + wanted.sum()))

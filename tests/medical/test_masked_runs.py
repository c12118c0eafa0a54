"""Masked pre-training from end to end: the train command, the encoder's file, fine-tuning from it, and its picture."""

import json

import numpy as np
import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from PIL import Image

from vssm._tasks import task_of
from vssm.checkpoint import CheckpointError
from vssm.commands import main
from vssm.engine import load_config
from vssm.medical import create_unet
from vssm.medical.masked import MaskedPretraining, draw_mask, patchify
from vssm.medical.masked_pictures import fill_in, unpatchify

from .conftest import REPO, write_nifti
from .test_tools import call, sentence, train_tool

FILES = sorted((REPO / "configs" / "pretraining").glob("*.py"))
FEW = "encoder_options=dict(dims=(6, 6, 6, 6, 12))"


def volumes_run(tmp_path):
    """A short run on volumes without labels: (config, work dir)."""
    random = np.random.default_rng(0)
    for number in range(2):
        write_nifti(tmp_path / "data/train/images" / f"v{number}.nii.gz", random.random((40, 36, 20), np.float32))
    config = tmp_path / "run.py"
    config.write_text(
        f'_base_ = ["{REPO}/configs/pretraining/mambamim-hymamba-pico_mni152.py"]\n'
        f"model = dict(network=dict({FEW}), decoder_dim=16)\n"
        f'train_dataloader = dict(batch_size=2, dataset=dict(dataset=dict(root="{tmp_path}/data"), patch=(16, 32, 32), '
        "per_volume=2))\ntrain_cfg = dict(max_epochs=1)\n"
        "default_hooks = dict(logger=dict(interval=1))\n"
        'param_scheduler = [dict(type="CosineAnnealingParamScheduler", param_name="weight_decay", eta_min=0.2, '
        "T_max=1, by_epoch=True, begin=0, end=1)]\n"
    )
    return config, tmp_path / "wd"


def test_volumes_without_labels(tmp_path, capsys):
    config, work_dir = volumes_run(tmp_path)
    assert call(train_tool, config, "--work-dir", work_dir) == 0
    records = [json.loads(line) for line in next(work_dir.glob("*/vis_data/scalars.json")).read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)
    stored = torch.load(work_dir / "encoder_only.pth", weights_only=True)
    assert {"embeddings.stem.weight", "mae.mask_token", "mae.pos_embed"} < stored.keys()

    # The encoder alone, and that of the run's checkpoint, by what fine-tuning configs say.
    options = dict(dims=(6, 6, 6, 6, 12))
    network = dict(decoder="hymamba", encoder="hymamba_pico", spatial_dims=3, num_classes=2, encoder_options=options)
    one, other = (
        create_unet(**network, pretrained=work_dir / name).encoder.state_dict()
        for name in ("encoder_only.pth", "epoch_1.pth")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(one["stem.weight"], stored["embeddings.stem.weight"])

    capsys.readouterr()
    out = tmp_path / "masked.png"
    assert main(
        ["visualize", "masked", str(config), str(work_dir / "epoch_1.pth"), "--out", str(out), "--count", "2"]
    ) in (0, None)
    assert Image.open(out).size == (1125, 750) and "masked.png" in capsys.readouterr().out


def test_photographs(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "data/train/any").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(random.integers(0, 255, (80, 90, 3), np.uint8)).save(tmp_path / f"data/train/any/{number}.png")
    config, work_dir = tmp_path / "run.py", tmp_path / "wd"
    config.write_text(
        f'_base_ = ["{REPO}/configs/pretraining/mambamim-vmamba-pico_photos.py"]\n'
        "model = dict(decoder_dim=32)\n"
        f'train_dataloader = dict(dataset=dict(root="{tmp_path}/data", transform=dict(input_size=64)))\n'
        "train_cfg = dict(max_epochs=1)\n"
    )
    assert call(train_tool, config, "--work-dir", work_dir) == 0
    stored = torch.load(work_dir / "encoder_only.pth", weights_only=True)
    net = create_unet("unet", "vmamba_pico", pretrained=work_dir / "encoder_only.pth")
    trained = torch.load(work_dir / "epoch_1.pth", weights_only=False)["state_dict"]
    mine = {f"encoder.{name}": value for name, value in net.encoder.state_dict().items()}
    assert mine.keys() == {name for name in trained if name.startswith("encoder.")}
    assert all(torch.equal(value, trained[name]) for name, value in mine.items())
    assert stored.keys() - timm.create_model("vmamba_pico", num_classes=0).state_dict().keys() == set()
    out = tmp_path / "masked.jpg"
    assert main(["visualize", "masked", str(config), str(work_dir / "epoch_1.pth"), "--out", str(out)]) in (0, None)
    assert out.is_file()


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_the_names_of_timms_models(name):
    model = MaskedPretraining(dict(encoder=name), decoder_dim=32)
    weights, untrained = model.encoder_weights()
    assert weights.keys() == timm.create_model(name, num_classes=0).state_dict().keys()
    assert all(part.startswith(("norm_pre", "head", "fc")) for part in untrained)
    assert len(weights) - len(untrained) == len(model.encoder.state_dict())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_configs(path):
    cfg = load_config(str(path))
    assert type(task_of(cfg)).__name__ == "Pretrain"
    cfg.model.decoder_dim = 32
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for scheduler in cfg.param_scheduler:
        built = {k: v for k, v in scheduler.items() if k != "convert_to_iter_based"}
        PARAM_SCHEDULERS.build(built, default_args=dict(optimizer=wrapper))
        assert scheduler.end <= cfg.train_cfg.max_epochs
    dataset = cfg.train_dataloader.dataset
    size = dataset.patch if "patch" in dataset else [dataset.transform.input_size] * 2
    assert not any(n % step for n, step in zip(size, model.stride, strict=True))


def test_what_is_seen_stays_and_the_rest_has_the_true_mean():
    x = torch.randn(2, 3, 64, 96)
    assert torch.equal(unpatchify(patchify(x, (32, 32)), (32, 32), (2, 3)), x)
    model = MaskedPretraining(dict(encoder="vmamba_pico"), decoder_dim=32).eval()
    visible = draw_mask(2, (2, 3), 0.5)
    filled = fill_in(model, x, visible)
    patches, truth, seen = patchify(filled, (32, 32)), patchify(x, (32, 32)), visible.flatten(1)
    assert torch.equal(patches[seen], truth[seen]) and not torch.equal(patches[~seen], truth[~seen])


def test_such_a_run_predicts_nothing_and_weights_of_others_are_refused(tmp_path, capsys):
    from .test_tools import predict_tool

    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    said = sentence(capsys, predict_tool, FILES[0], tmp_path / "a.pth", tmp_path / "a.png", "--out", tmp_path / "out")
    assert "vssm visualize masked" in said
    with pytest.raises(CheckpointError, match="missing"):
        create_unet("hymamba", encoder="hymamba_pico", spatial_dims=3, pretrained=tmp_path / "a.pth")

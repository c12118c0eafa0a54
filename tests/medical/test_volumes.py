"""Networks of volumes, and training and prediction with them: patches, windows, several channels, whole runs."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS

from vssm._errors import DataError
from vssm.engine import load_config
from vssm.engine.config import ConfigError
from vssm.medical import create_unet
from vssm.medical.data import ACDC, NiftiFolder, Synapse
from vssm.medical.patches import VolumePatches, normalize
from vssm.medical.predict import group_channels
from vssm.medical.segmentor import UNetSegmentor
from vssm.medical.volume_encoders import VOLUME_ENCODERS
from vssm.medical.windows import predict_windows
from vssm.profiling import count

from .conftest import CONFIGS, write_nifti, write_nifti_folder, write_synapse
from .test_tools import call, predict_tool, sentence, test_tool, train_tool

CLASSES = ("background", "one", "two")
SMALL = dict(encoder="vmamba3d_pico", spatial_dims=3, encoder_options=dict(dims=4, mlp_ratio=0))


def small(**options):
    torch.manual_seed(0)
    return create_unet(**{**SMALL, **options})


# ---- networks


@pytest.mark.parametrize("strides", [None, [(1, 2, 2), (1, 2, 2), 2], [4, 2, 1]], ids=["2", "thin slices", "4"])
@pytest.mark.parametrize("scan", ["cross", "tri-oriented"])
def test_any_size_and_stride(strides, scan):
    if strides == [4, 2, 1]:
        strides[2] = (2, 1, 1)
    options = dict(dims=4, strides=strides, scan=scan)
    net = small(num_classes=2, encoder_options=options).eval()
    x = torch.randn(1, 1, 5, 9, 13)
    y = net(x)
    assert y.shape == (1, 2, 5, 9, 13)
    sizes = [-(-n // step) * step for n, step in zip((5, 9, 13), net.stride, strict=True)]
    i, j, k = (torch.arange(size).clamp(max=n - 1) for size, n in zip(sizes, (5, 9, 13), strict=True))
    whole = net(x[:, :, i][:, :, :, j][..., k])
    torch.testing.assert_close(y, whole[:, :, :5, :9, :13], rtol=1e-4, atol=1e-5)
    net.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    maps, stages = net.forward_intermediates(x)
    assert [tuple(m.shape[1:2]) for m in maps] == [(width,) for width in net.encoder.channels]
    assert [tuple(m.shape[2:]) for m in maps] == [
        tuple(n // step for n, step in zip(sizes, reduction, strict=True)) for reduction in net.encoder.reductions
    ]
    assert stages[-1].shape[2:] == maps[0].shape[2:]


def test_a_bottleneck_reads_slices_both_ways():
    net = small(bottleneck="conv_ssm").eval()
    channels = net.encoder.channels[-1]
    x = torch.randn(1, channels, 5, 3, 4, requires_grad=True)
    for given, seen in ((0, 4), (4, 0)):
        (grad,) = torch.autograd.grad(net.bottleneck(x)[:, :, seen].sum(), x)
        assert grad[:, :, given].abs().max() > 0
    volume = torch.randn(1, 1, 17, 9, 13)
    assert net(volume).shape == (1, 1, 17, 9, 13)
    with torch.no_grad():
        maps, _ = net.forward_intermediates(volume)
        raw = net.encoder(net.prepare(volume))
        assert torch.equal(maps[-1], net.bottleneck(raw[-1])) and torch.equal(maps[0], raw[0])
        net.bottleneck.proj.weight.zero_(), net.bottleneck.proj.bias.zero_()
        without = small().eval()
        without.load_state_dict(net.state_dict(), strict=False)
        assert torch.equal(net(volume), without(volume))
    net.train()(volume).square().sum().backward()
    assert all(p.grad is not None for p in net.bottleneck.parameters())


def test_costs():
    """By the layers of a decoder's finest stage and a stem; a scan counts as in planes."""
    net = small(encoder_options=dict(dims=4, depths=(1,), mlp_ratio=0))
    cost = count(net, (1, 4, 6, 8))
    per_layer = {module.name: module.flops for module in cost.modules}
    assert per_layer["encoder.stages.0.downsample.conv"] == 2 * 3 * 4 * 4 * 27
    mixer = net.encoder.stages[0].blocks[0].mixer
    scan = 24 * 4 * 6 * (9 + 1) + 24 * 4 * 6 * mixer.dt_rank  # positions, channels, routes
    linear = 24 * (4 * 4 * 2 + 4 * 6 * (mixer.dt_rank + 2)) + 24 * 4 * 27 + 24 * 4 * 5
    assert per_layer["encoder.stages.0.blocks.0.mixer"] == scan + linear


def test_state_space_parameters_are_not_decayed():
    spared = small().no_weight_decay()
    assert any(name.endswith("A_logs") for name in spared) and all(name.startswith("encoder") for name in spared)


def test_weights_of_an_encoder(tmp_path):
    net = small()
    torch.save({"state_dict": net.encoder.state_dict()}, tmp_path / "encoder.pth")
    torch.manual_seed(1)
    other = create_unet(**SMALL, pretrained=tmp_path / "encoder.pth")
    assert all(torch.equal(a, b) for a, b in zip(other.encoder.parameters(), net.encoder.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            dict(encoder="vmamba_tiny_s1l8"),
            "must be one of vmamba3d_pico, .* for volumes, got 'vmamba_tiny_s1l8'",
        ),
        (dict(decoder="msvm"), "decoder must be one of unet, hymamba for volumes, got 'msvm'"),
        (dict(pretrained=True), "no weights of 'vmamba3d_pico' can be fetched"),
        (dict(spatial_dims=4), r"spatial_dims must be 2 \(images\) or 3 \(volumes\), got 4"),
        (dict(skip_stage_inputs=True), "skip_stage_inputs is for images"),
        (dict(bottleneck="lstm"), "bottleneck must be None or conv_ssm, got 'lstm'"),
        (
            dict(bottleneck="conv_ssm", spatial_dims=2, encoder="vmamba_pico"),
            "bottleneck is for volumes, and must be None for images, got 'conv_ssm'",
        ),
        (dict(encoder_options=dict(strides=[2, 2])), "for each of 3 stages a step along D, H and W"),
        (dict(encoder_options=dict(scan="spiral")), "scan must be one of cross, tri-oriented, got 'spiral'"),
        (dict(encoder_options=dict(sizes=2)), "the encoder 'vmamba3d_pico' does not take all of"),
        (dict(decoder_channels=[2]), r"decoder_channels needs 3 widths for this encoder, got \[2\]"),
    ],
)
def test_wrong_requests_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_unet(**{**SMALL, **options})


def test_images_and_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"takes volumes \(B, 1, D, H, W\), got \(1, 1, 8, 8\); images have no"):
        small()(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"got \(1, 3, 8, 8, 8\)"):
        small()(torch.zeros(1, 3, 8, 8, 8))


# ---- patches and windows


def folder(tmp_path, channels=1):
    root = write_nifti_folder(tmp_path / "nifti")
    for number, split in enumerate(("train", "val", "test")):
        images = root / split / "images"
        if channels > 1:
            for channel in range(1, channels):
                write_nifti(images / f"v{number}_{channel:04d}.nii.gz", np.full((40, 36, 8), channel, np.float32))
            (images / f"v{number}.nii.gz").rename(images / f"v{number}_0000.nii.gz")
    return root


def patches(root, **options):
    data = NiftiFolder(str(root), "train", CLASSES, volumes=True)
    return VolumePatches(data, **{"patch": (4, 12, 12), **options})


def test_patches_are_cut_from_the_volume(tmp_path):
    root = folder(tmp_path)
    whole = NiftiFolder(str(root), "train", CLASSES, volumes=True)[0]
    data = patches(root, per_volume=3, foreground=0.0, mean=0.25, std=0.5)
    assert len(data) == 3 and data.metainfo["classes"] == CLASSES
    torch.manual_seed(0)
    first = data[1]
    assert first["image"].shape == (1, 4, 12, 12) and first["label"].dtype == torch.int64
    windows = ((whole["image"] - 0.25) / 0.5).unfold(0, 4, 1).unfold(1, 12, 1).unfold(2, 12, 1)
    labels = whole["label"].long().unfold(0, 4, 1).unfold(1, 12, 1).unfold(2, 12, 1)
    same = (windows == first["image"][0]).flatten(-3).all(-1) & (labels == first["label"]).flatten(-3).all(-1)
    assert same.sum() == 1
    torch.manual_seed(0)
    again = patches(root, foreground=0.0, mean=0.25, std=0.5, cache=False)[0]
    assert torch.equal(again["image"], first["image"])


def test_patches_have_the_classes_at_their_centres(tmp_path):
    data = patches(folder(tmp_path), patch=(1, 1, 1), foreground=1.0)
    values = [int(data[0]["label"]) for _ in range(60)]
    assert set(values) == {1, 2} and 15 < values.count(1) < 45


def test_augmented_patches_hold_the_same_voxels(tmp_path):
    data = patches(folder(tmp_path), patch=(8, 36, 36), foreground=0.0, mirror=(True, False, True), turn=True)
    kept = data.kept[0][0].copy()
    torch.manual_seed(3)
    samples = [data[0] for _ in range(8)]
    # Each label lies on its own voxels, whatever the turn: class 2 is the brighter one.
    for sample in samples:
        pixels, label = sample["image"][0], sample["label"]
        assert pixels[label == 2].min() > 0.9 and pixels[label == 0].max() < 0.4
    assert len({tuple(sample["label"].flatten().tolist()) for sample in samples}) > 3
    louder = patches(folder(tmp_path / "b"), intensity=0.2, noise=0.1)
    assert not torch.equal(louder[0]["image"], louder[0]["image"])
    assert np.array_equal(data.kept[0][0], kept)


def test_patches_larger_than_the_volume(tmp_path):
    sample = patches(folder(tmp_path), patch=(10, 12, 40))[0]
    assert sample["image"].shape == (1, 10, 12, 40)
    assert torch.equal(sample["label"][8:], sample["label"][7:8].expand(2, -1, -1))


def test_normalization_by_each_channel():
    volume = np.random.default_rng(0).normal(5, 3, (2, 4, 5, 6)).astype(np.float32)
    volume[1] *= 10
    given = normalize(volume, None, None)
    assert np.allclose(given.mean((1, 2, 3)), 0, atol=1e-5) and np.allclose(given.std((1, 2, 3)), 1, atol=1e-4)
    assert normalize(volume[0], 5, 3).shape == (1, 4, 5, 6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(patch=(4, 8)), r"three whole numbers \(D, H, W\), not \(4, 8\)"),
        (dict(per_volume=0), "per_volume is a whole number from 1, not 0"),
        (dict(foreground=2), "foreground is a probability from 0 to 1, not 2"),
        (dict(patch=(4, 8, 6), turn=True), "turn needs a patch with H = W"),
    ],
)
def test_wrong_options_of_patches(tmp_path, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        patches(folder(tmp_path), **options)


def test_slices_are_no_volumes(tmp_path):
    slices = NiftiFolder(str(folder(tmp_path)), "train", CLASSES, transform=dict(size=8))
    with pytest.raises(ConfigError, match="this one gives slices: say volumes=True"):
        VolumePatches(slices, (4, 4, 4))


class Threshold(torch.nn.Module):
    """Class 1 where the last channel is positive; it remembers the sizes that it was given."""

    in_chans, num_classes, activation = 2, 2, torch.nn.Identity()

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        return torch.stack([-x[:, -1], x[:, -1] * self.scale], 1)


def segmentor(network):
    model = UNetSegmentor(SMALL | dict(num_classes=2, in_chans=2))
    model.model = network
    return model.eval()


@pytest.mark.parametrize("size", [(9, 21, 14), (3, 4, 30)], ids=str)
def test_windows_cover_the_volume(size):
    network = Threshold()
    volume = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    steps = []
    label = predict_windows(
        segmentor(network), volume, (4, 8, 8), 0.5, 3, progress=lambda items, title: steps.append(len(items)) or items
    )
    assert label.dtype == np.uint8 and np.array_equal(label, (volume[1] > 0).numpy())
    assert {shape[1:] for shape in network.sizes} == {(2, 4, 8, 8)}
    assert steps == [len(network.sizes)] and sum(shape[0] for shape in network.sizes) > 3


def test_one_window_is_the_network_itself_and_one_class_a_threshold():
    model = UNetSegmentor(SMALL | dict(num_classes=1), threshold=0.45).eval()
    volume = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(0))
    want = model(volume[None, None], mode="predict")[0]["prediction"]
    assert np.array_equal(predict_windows(model, volume, (8, 16, 16)), want.numpy())
    with pytest.raises(DataError, match=r"takes volumes of 1 channels, but this one has 2: .* \(2, 4, 8, 8\)"):
        predict_windows(model, torch.zeros(2, 4, 8, 8), (4, 8, 8))


# ---- volumes of several channels, and of the published sets


def test_channels_by_nnunets_names(tmp_path):
    data = NiftiFolder(str(folder(tmp_path, 3)), "train", CLASSES, volumes=True)
    sample = data[0]
    assert sample["image"].shape == (3, 8, 36, 40) and sample["label"].shape == (8, 36, 40)
    assert [int(channel.max()) for channel in sample["image"][1:]] == [1, 2] and data.items[0].case == "v0"
    assert VolumePatches(data, (4, 8, 8))[0]["image"].shape == (3, 4, 8, 8)
    given = dict(images="images", labels="labels", volumes=True)
    raw = NiftiFolder(str(tmp_path / "nifti" / "train"), ".", CLASSES, **given)  # as nnU-Net's
    assert torch.equal(raw[0]["image"], sample["image"])
    for split in ("train", "val"):
        with pytest.raises(ConfigError, match="holds volumes of 3 channels, which networks of slices do not take"):
            NiftiFolder(str(tmp_path / "nifti"), split, CLASSES)
    (tmp_path / "nifti/test/images/v2_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="case 'v2' .* lacks channel 1, the file 'v2_0001'; all cases need the 3"):
        NiftiFolder(str(tmp_path / "nifti"), "test", CLASSES)


def test_cases_whose_own_names_end_in_numbers(tmp_path):
    for name in ("brain_0001", "brain_0002"):
        for kind in ("images", "labels"):
            write_nifti(tmp_path / "val" / kind / f"{name}.nii.gz", np.zeros((4, 5, 6), np.uint8))
    data = NiftiFolder(str(tmp_path), "val", CLASSES)
    assert [item.case for item in data.items] == ["brain_0001", "brain_0002"] and data[0]["image"].dim() == 3


def test_channels_to_predict(tmp_path):
    files = [tmp_path / f"{case}_{n:04d}.nii.gz" for case in "ab" for n in range(2)]
    assert group_channels(files, 2) == [files[:2], files[2:]]
    assert group_channels(files, 1) == [[file] for file in files]
    with pytest.raises(DataError, match="case '.*b' lacks channel 1, but the network takes volumes of 2"):
        group_channels(files[:3], 2)
    with pytest.raises(DataError, match="case '.*a' has 2 channels|lacks channel 2"):
        group_channels(files[:2], 3)
    with pytest.raises(DataError, match="in files '<case>_0000' to '<case>_0001', but the name of 'c.nii'"):
        group_channels([tmp_path.__class__("c.nii")], 2)


def test_published_sets_as_volumes(tmp_path):
    root = write_synapse(tmp_path)
    data = Synapse(str(root), "train", validation=["case0034"], volumes=True)
    assert [item.case for item in data.items] == ["case0005", "case0010", "case0027"]
    assert data[0]["image"].shape == (4, 24, 24) and VolumePatches(data, (4, 8, 8))[0]["image"].shape == (1, 4, 8, 8)
    acdc = tmp_path / "acdc"
    (acdc / "train").mkdir(parents=True)
    for number in range(3):
        pair = dict(img=np.full((8, 8), number, np.float32), label=np.ones((8, 8)))
        np.savez(acdc / "train" / f"case_001_sliceED_{number}.npz", **pair)
    (acdc / "train.txt").write_text("".join(f"case_001_sliceED_{number}\n" for number in range(3)))
    (sample,) = ACDC(str(acdc), "train", volumes=True)
    assert sample["image"][:, 0, 0].tolist() == [0, 1, 2] and sample["label"].max() == 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("unet-vmamba3d-*.py")), ids=lambda path: path.stem)
def test_configs_are_prepared_alike_for_training_and_evaluation(path):
    cfg = load_config(str(path))
    train = cfg.train_dataloader.dataset
    for loop in (cfg.val_cfg, cfg.test_cfg):
        assert (tuple(loop.patch), loop.mean, loop.std) == (tuple(train.patch), train.mean, train.std)
    assert train.type == "VolumePatches" and train.dataset.volumes and train.dataset.split == "train"
    assert DATASETS.get(train.dataset.type) is DATASETS.get(cfg.test_dataloader.dataset.type)
    assert cfg.model.network.encoder in VOLUME_ENCODERS and cfg.model.network.num_classes >= 3


def test_a_run_on_volumes_of_two_channels(tmp_path, capsys):
    """Check, training, test and prediction by one config."""
    from vssm.engine.run import check

    root = folder(tmp_path, 2)
    config = tmp_path / "run.py"
    config.write_text(
        f'_base_ = ["{CONFIGS}/unet-vmamba3d-pico_mni152.py"]\n'
        "model = dict(network=dict(in_chans=2, encoder_options=dict(dims=4, depths=(1, 1), mlp_ratio=0)))\n"
        f'data = dict(root="{root}", classes={CLASSES})\n'
        "patch = (8, 16, 16)\n"
        "train_dataloader = dict(dataset=dict(dataset=data, patch=patch, per_volume=24))\n"
        "val_dataloader = dict(dataset=data)\ntest_dataloader = dict(dataset=data)\n"
        "val_cfg = dict(patch=patch)\ntest_cfg = dict(patch=patch, overlap=0.25)\n"
        "train_cfg = dict(max_epochs=2, val_interval=2)\n"
        'param_scheduler = [dict(type="CosineAnnealingLR", T_max=2, by_epoch=True, end=2)]\n'
    )
    check(str(config), None, 100)
    assert "one" in capsys.readouterr().out
    assert call(train_tool, config, "--work-dir", tmp_path / "wd") == 0
    weights = tmp_path / "wd" / "epoch_2.pth"
    out = tmp_path / "m.json"
    assert call(test_tool, config, weights, "--work-dir", tmp_path / "t", "--out", out) == 0
    assert json.loads(out.read_text())["dice/mean"] > 30
    assert (tmp_path / "t" / "v2.png").is_file()
    scans = root / "test" / "images"
    assert call(predict_tool, config, weights, scans, "--out", tmp_path / "labels") == 0
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {"v2_label.nii.gz", "v2_overlay.png"}
    import nibabel

    label = np.asarray(nibabel.load(tmp_path / "labels" / "v2_label.nii.gz").dataobj)
    truth = np.asarray(nibabel.load(root / "test" / "labels" / "v2.nii.gz").dataobj)
    dice = 200 * ((label == 1) & (truth == 1)).sum() / ((label == 1).sum() + (truth == 1).sum())
    assert json.loads(out.read_text())["dice/one"] == pytest.approx(dice)
    (scans / "v2_0001.nii.gz").unlink()
    assert "lacks channel 1" in sentence(capsys, predict_tool, config, weights, scans, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()

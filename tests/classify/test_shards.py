"""Tar shards: written, read, dealt out to processes and workers, and what is said of damaged ones."""

import io
import itertools
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import sampler as mmengine_samplers
from PIL import Image

from vssm import _inputs
from vssm.classify import ImageFolder, ShardSampler, TimmDataset, shards
from vssm.classify.classifier import TimmClassifier
from vssm.commands import main
from vssm.engine import ConfigError, DataError, Runner
from vssm.engine.checks import check_run

SIDE = dict(input_size=8, crop_pct=1.0, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))


def prepare(*words):
    return main(["prepare", "shards", *map(str, words)])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of one grey value each, so that a value names its image: 40 to train on, 0 to 39, and 17 more."""
    root = tmp_path_factory.mktemp("grey")
    for split, values in (("train", range(40)), ("val", range(100, 117))):
        for value in values:
            folder = root / split / f"class_{value % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), value).save(folder / f"a.{value}.png")
    return root


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
    """Shards of seven: six for training, the last with five; three for the other split, the last with three."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    assert not prepare(images, out, "--samples", 7)
    return out


def read(root, split="val", **options):
    return TimmDataset("wds/grey", str(root), split, SIDE, **options)


def values(data):
    return [round(data[index]["inputs"][0, 0, 0].item() * 255) for index in range(len(data))]


def test_what_is_packed_is_read(images, packed):
    for split, count in (("train", 40), ("val", 17)):
        data, folder = read(packed, split), ImageFolder(str(images), split, SIDE)
        assert data.metainfo == folder.metainfo and len(data) == count
        found = dict(zip(values(data), (data[index]["labels"] for index in range(count)), strict=True))
        assert found == {value: value % 3 for value in sorted(found)} and len(found) == count
        assert list(found) != sorted(found), "they were not shuffled"


def test_packing_is_reproducible_and_in_the_layout_of_timm(images, packed, tmp_path, capsys):
    assert not prepare(images, tmp_path / "again", "--samples", 7)
    assert "again: train: 40 images in 6 shards." in capsys.readouterr().out
    names = sorted(path.name for path in packed.glob("*.tar"))
    assert names == [f"train-0000{n}.tar" for n in range(6)] + [f"val-0000{n}.tar" for n in range(3)]
    assert all((tmp_path / "again" / name).read_bytes() == (packed / name).read_bytes() for name in names)
    assert not prepare(images, tmp_path / "other", "--samples", 7, "--seed", 1, "--splits", "val")
    assert values(read(tmp_path / "other")) != values(read(packed))
    info = json.loads((packed / "_info.json").read_text())
    assert info["splits"]["val"] == dict(
        name="val", num_samples=17, filenames=names[6:], shard_lengths=[7, 7, 3]
    ) and list(info["splits"]) == ["train", "val"]
    with tarfile.open(packed / "val-00000.tar") as archive:
        first = archive.getnames()[:2]
    assert first[0].endswith(".png") and first[1] == first[0].replace(".png", ".cls") and first[0].count(".") == 1


def test_shards_have_a_size_at_most(images, tmp_path):
    size = max(path.stat().st_size for path in images.glob("val/*/*"))
    assert not prepare(images / "val", tmp_path / "out", "--megabytes", 3.5 * size / 2**20)
    data = read(tmp_path / "out", "train")
    assert data.shard_lengths == [3] * 5 + [2] and sorted(values(data)) == list(range(100, 117))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_sees_each_sample_once(packed, world, monkeypatch):
    for workers in (0, 2):
        parts = []
        for rank in range(world):
            monkeypatch.setattr(mmengine_samplers, "get_dist_info", lambda rank=rank: (rank, world))
            config = dict(
                batch_size=4,
                num_workers=workers,
                sampler=dict(type="DefaultSampler", shuffle=False),
                collate_fn=dict(type="default_collate"),
                dataset=dict(type="TimmDataset", name="wds/grey", root=str(packed), split="val", transform=SIDE),
            )
            loader = Runner.build_dataloader(config, seed=0)
            batches = [batch["inputs"][:, 0, 0, 0] for batch in loader]
            parts.append((torch.cat(batches) * 255).round().int().tolist())
        assert len({len(part) for part in parts}) == 1
        # What mmengine makes of the processes' results: one of each in turn, up to the number of samples.
        seen = list(itertools.chain.from_iterable(zip(*parts, strict=True)))[:17]
        assert sorted(seen) == list(range(100, 117)), (world, workers)


def sampler(monkeypatch, data, rank=0, world=1, epoch=0, **options):
    monkeypatch.setattr(shards, "get_dist_info", lambda: (rank, world))
    made = ShardSampler(data, seed=5, **options)
    made.set_epoch(epoch)
    return made


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_an_epoch(packed, world, monkeypatch):
    data = read(packed, "train")
    parts = [list(sampler(monkeypatch, data, rank, world, shuffle_size=10)) for rank in range(world)]
    count = -(-40 // world)
    assert [len(part) for part in parts] == [count] * world
    assert len(sampler(monkeypatch, data, 0, world)) == count
    flat = sum(parts, [])
    assert set(flat) == set(range(40)) and len(flat) - 40 < world
    again = [list(sampler(monkeypatch, data, rank, world, shuffle_size=10)) for rank in range(world)]
    next_epoch = [list(sampler(monkeypatch, data, rank, world, epoch=1, shuffle_size=10)) for rank in range(world)]
    assert again == parts and all(one != other for one, other in zip(parts, next_epoch, strict=True))


def test_samples_that_are_read_at_a_time_lie_in_few_shards(monkeypatch):
    data = SimpleNamespace(shard_lengths=[100] * 50)
    order = list(sampler(monkeypatch, data, shuffle_size=400))
    blocks = [order[start : start + 400] for start in range(0, 5000, 400)]
    assert max(len({index // 100 for index in block}) for block in blocks) <= 5
    # Within a block neighbours are of different shards, and shards that meet are others in the next epoch.
    first = blocks[0]
    assert np.mean([one // 100 != other // 100 for one, other in itertools.pairwise(first)]) > 0.5
    second = list(sampler(monkeypatch, data, shuffle_size=400, epoch=1))[:400]
    assert {index // 100 for index in first} != {index // 100 for index in second}
    assert list(sampler(monkeypatch, data, shuffle=False)) == list(range(5000))


def test_shard_samplers_mistakes(images, packed):
    with pytest.raises(ConfigError, match="needs data in shards; for ImageFolder use DefaultSampler"):
        ShardSampler(ImageFolder(str(images), "train"))
    with pytest.raises(ConfigError, match="shuffle_size is 1 or more, not 0"):
        ShardSampler(read(packed), shuffle_size=0)


def test_an_order_that_jumps_is_said(packed, monkeypatch, caplog):
    monkeypatch.setattr(_inputs, "_said", set())
    data = shards.Shards(packed, "train", kept_samples=7, kept_files=1)
    for turn in range(5):
        assert not caplog.records
        assert [data[index][0].getpixel((0, 0))[0] for index in (0, 39)] and turn < 5
    assert len(caplog.records) == 1 and "jumps between too many shards" in caplog.text and "ShardSampler" in caplog.text


@pytest.fixture
def own(packed, tmp_path):
    """A split of the shards that may be spoilt."""
    root = tmp_path / "own"
    root.mkdir()
    info = json.loads((packed / "_info.json").read_text())
    for name in ("_info.json", *info["splits"]["val"]["filenames"]):
        (root / name).write_bytes((packed / name).read_bytes())
    return root


def repack(path, change, rename=("", "")):
    """Write a shard anew with ``change(name, data)``: other data, or None to leave a file out."""
    with tarfile.open(path) as archive:
        files = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w") as archive:
        for member, data in files:
            data = change(member.name, data)
            if data is not None:
                member.name, member.size = member.name.replace(*rename), len(data)
                archive.addfile(member, io.BytesIO(data))


def test_damaged_shards(own):
    path = own / "val-00001.tar"
    good = path.read_bytes()
    read(own)[0], read(own)[7], read(own)[16]

    def message(damaged):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            read(own)[7]
        assert f"Shard '{path}'" in str(error.value)
        read(own)[0], read(own)[16]  # the others are read all the same
        return str(error.value)

    assert "holds 5 samples, and not the 7 that _info.json says" in message(good[: len(good) // 2])
    assert "it ends within '00000007-" in message(good[:550]), "cut off inside of the first image"
    assert "is damaged or no plain tar file" in message(b"\0" * 100)
    # A header that makes no sense ends an archive for tarfile.
    assert "holds 2 samples, and not the 7 that _info.json says" in message(
        good[: 4 * 1024] + b"x" * 512 + good[4 * 1024 + 512 :]
    )
    path.unlink()
    with pytest.raises(DataError, match="Shard '.*val-00001.tar' does not exist"):
        read(own)


def test_damaged_samples(own, monkeypatch):
    path = own / "val-00000.tar"
    good = path.read_bytes()
    with tarfile.open(path) as archive:
        key = archive.getnames()[2].removesuffix(".png")
    sample = f"Sample '{key}' of shard '{path}'"

    def message(suffix, data):
        path.write_bytes(good)
        repack(path, lambda name, old: data if name == key + suffix else old)
        with pytest.raises(DataError) as error:
            read(own)[1]
        read(own)[0], read(own)[2]
        return str(error.value)

    assert message(".png", b"no image").startswith(f"{sample} cannot be read: cannot identify")
    with tarfile.open(path) as archive:
        cut = archive.extractfile(f"{archive.getnames()[0]}").read()[:45]
    assert message(".png", cut).startswith(f"{sample} cannot be read: ")
    assert message(".png", None) == f"{sample} has no image."
    assert message(".cls", None) == f"{sample} has no label (a cls file)."
    assert message(".cls", b"cat").startswith(f"{sample} has no class number: ")
    assert message(".cls", b"3") == f"The split 'val' of 'wds/grey' in '{own}' has a sample of the class 3, " + (
        "but the classes end at 2."
    )
    # Through worker processes it is one sentence as well.
    message(".png", b"no image")
    loader = torch.utils.data.DataLoader(read(own), batch_size=4, num_workers=1)
    with pytest.raises(DataError, match="cannot be read: cannot identify"):
        list(loader)


def test_labels_beyond_the_model_are_refused_where_classes_have_no_names(own):
    info = json.loads((own / "_info.json").read_text())
    del info["class_names"]
    (own / "_info.json").write_text(json.dumps(info))
    data = read(own)
    assert data.metainfo == {}
    loader = torch.utils.data.DataLoader(data)
    check_run(TimmClassifier(dict(name="test_resnet", num_classes=2)), loader, "val_dataloader")
    with pytest.raises(DataError, match="a sample of the class 2, but the classes end at 1"):
        list(loader)


def test_labels_from_a_json_file(own):
    label = json.dumps({"a": {"label": 1}}).encode()
    entry = own / "val-00002.tar"
    repack(entry, lambda name, data: label if name.endswith(".cls") else data, rename=(".cls", ".json"))
    assert read(own, target_key="a/label")[16]["labels"] == 1
    with pytest.raises(DataError, match="has no class number: 'b'"):
        read(own, target_key="b")[16]


def test_an_index_that_makes_no_sense(own, tmp_path):
    def message(root=own, split="val", **changes):
        if changes:
            info = json.loads((own / "_info.json").read_text())
            info["splits"]["other"] = {**info["splits"]["val"], **changes}
            (own / "_info.json").write_text(json.dumps(info))
        with pytest.raises(DataError) as error:
            read(root, split)
        return str(error.value)

    assert "has no split 'vall' (did you mean 'val'?); it has train, val." in message(split="vall")
    assert "The split 'other' of " in (text := message(split="other", filenames=[], shard_lengths=[], num_samples=0))
    assert text.endswith("has no samples.")
    assert "contradicts itself" in message(split="other", num_samples=18)
    assert "contradicts itself" in message(split="other", shard_lengths=[17])
    assert "as filenames and shard_lengths: " in message(split="other", shard_lengths=None)
    assert "has no _info.json" in message(tmp_path)
    assert "is an address; shards are read from a folder" in message("https://example.org/imagenet")
    for length in (float("inf"), 10**23, True):
        said = message(split="other", shard_lengths=[length, 7, 3])
        assert "as filenames and shard_lengths: " in said and "is no number of samples" in said
    secret = tmp_path / "secret.tar"
    secret.write_bytes((own / "val-00000.tar").read_bytes())
    for name in ("../secret.tar", str(secret)):
        said = message(split="other", filenames=[name], shard_lengths=[7], num_samples=7)
        assert f"names the shard '{name}'; shards lie in the folder of that file." in said
    info = json.loads((own / "_info.json").read_text())
    (own / "_info.json").write_text(json.dumps(info | {"class_names": 5}))
    assert "gives class_names as 5, which is no list of names." in message()
    (own / "_info.json").write_text("[" * 100_000)
    assert "its brackets are nested too deep." in message()
    (own / "_info.json").write_text("{")
    assert "_info.json' cannot be read: " in message()


def test_packing_refuses(images, tmp_path, monkeypatch):
    def message(*words):
        with pytest.raises(Exception) as error:
            prepare(*words)
        return str(error.value)

    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("")
    assert "is not empty" in message(images, full)
    assert "it has no prepared.json" in message(images, full, "--overwrite")
    assert "give a folder outside of it" in message(images, images / "out")
    assert "--samples is more than 0, not 0" in message(images, tmp_path / "out", "--samples", 0)
    assert "--megabytes is more than 0, not -1.0" in message(images, tmp_path / "out", "--megabytes", -1)
    assert "--seed is 0 or more" in message(images, tmp_path / "out", "--seed", -1)
    assert "nowhere' does not exist" in message(tmp_path / "nowhere", tmp_path / "out")
    assert "has no folder 'test'" in message(images, tmp_path / "out", "--splits", "val", "test")
    assert "has no folder 'test'" in message(images, tmp_path / "out", "--splits", "test")
    for split, kind in (("val", "a"), ("test", "b")):
        (tmp_path / "two" / split / kind).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "two" / split / kind / "0.png")
    assert "the splits 'test' and 'val' have different classes" in message(tmp_path / "two", tmp_path / "out")
    # A file that goes away in between: nothing half-written is left.
    data = ImageFolder(str(images), "val")
    data.reader.samples[5] = (str(tmp_path / "gone.png"), 0)
    monkeypatch.setattr("vssm.classify.prepare.ImageFolder", lambda *args: data)
    assert "gone.png' does not exist" in message(images, tmp_path / "out", "--splits", "val")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "two"]

"""Data sets by timm's names."""

import io
import itertools
import json
import sys
import warnings
from types import SimpleNamespace

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner as MMRunner
from PIL import Image
from torch.utils.data import DataLoader

from vssm import _inputs
from vssm._errors import MissingExtraError
from vssm.classify import Accuracy, TimmDataset, TimmStream, metrics, sources
from vssm.engine import ConfigError, DataError, Runner

SIDE = dict(input_size=8, crop_pct=1.0, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))


def values(loader):
    return [round(value) for batch in loader for value in (batch["inputs"][:, 0, 0, 0] * 255).tolist()]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A folder of Parquet files of different lengths: 26 images of one grey value each to train on, and 16 more."""
    pytest.importorskip("datasets", reason="needs the [datasets] extra")
    import pyarrow
    from pyarrow import parquet

    root = tmp_path_factory.mktemp("parquet")
    kinds = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ape", "bee", "cat"]}}
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [("image", image), ("label", pyarrow.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": kinds}})},
    )
    grey = itertools.count()
    for split, lengths in (("train", (10, 7, 9)), ("validation", (5, 8, 3))):
        for number, length in enumerate(lengths):
            rows = []
            for value in itertools.islice(grey, length):
                file = io.BytesIO()
                Image.new("L", (8, 8), value).save(file, "PNG")
                rows.append({"image": {"bytes": file.getvalue(), "path": f"{value}.png"}, "label": value % 3})
            parquet.write_table(
                pyarrow.Table.from_pylist(rows, schema=schema), root / f"{split}-{number:05d}-of-00003.parquet"
            )
    return root


def test_parquet_in_any_order(parquet, tmp_path):
    data = TimmDataset(f"hfds/{parquet}", str(tmp_path), "validation", SIDE)
    assert len(data) == 16 and data.metainfo["classes"] == ("ape", "bee", "cat")
    assert [data[index]["labels"] for index in range(16)] == [value % 3 for value in range(26, 42)]
    assert values(DataLoader(data, batch_size=5)) == list(range(26, 42))
    with pytest.raises(DataError, match="The split 'vali' of 'hfds/.*' cannot be opened: "):
        TimmDataset(f"hfds/{parquet}", str(tmp_path), "vali", SIDE)


def test_a_damaged_image_in_parquet_is_named(parquet, tmp_path, monkeypatch):
    data = TimmDataset(f"hfds/{parquet}", str(tmp_path), "validation", SIDE)
    monkeypatch.setattr(type(data.source.reader), "__getitem__", lambda self, index: (io.BytesIO(b"x"), 0))
    with pytest.raises(DataError, match="of 'hfds/.*', sample 3' cannot be read: cannot identify"):
        data[3]


def loader_of(data, workers=0, batch_size=4):
    loader = DataLoader(data, batch_size=batch_size, num_workers=workers)
    data.set_loader(loader)
    return loader


@pytest.fixture
def stream(parquet, tmp_path, monkeypatch):
    """A stream as one of several processes has it, and its loader."""
    monkeypatch.setattr(_inputs, "_said", set())
    # At the end of every pass it waits five seconds for threads of pyarrow, against a crash when a process ends.
    monkeypatch.setattr(sys.modules["datasets.config"], "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)

    def make(split="validation", rank=0, world=1, workers=0, epoch=0):
        training = split == "train"
        count = 26 if training else 16
        data = TimmStream(f"hfids/{parquet}", str(tmp_path), split, SIDE, is_training=training, num_samples=count)
        data.reader.dist_rank, data.reader.dist_num_replicas = rank, world
        monkeypatch.setattr(sources, "get_world_size", lambda: world)
        loader = loader_of(data, workers)
        data.set_epoch(epoch)
        return loader

    return make


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (3, 0), (3, 1)])
def test_an_evaluation_of_a_stream_sees_each_sample_once(stream, world, workers):
    parts = [values(stream(rank=rank, world=world, workers=workers)) for rank in range(world)]
    assert sorted(sum(parts, [])) == list(range(26, 42))
    if (world, workers) == (3, 0):
        assert len({len(part) for part in parts}) == 3, "the parts are no test of unequal ones"
        # A reader that is used again deals out as before.
        loader = stream(rank=1, world=3)
        assert values(loader) == values(loader) == parts[1]


def test_epochs_of_a_stream(stream, caplog):
    for world, ranks, workers in ((1, [0], 0), (2, [0, 1], 0), (2, [1], 1)):  # a worker takes seconds to end
        for rank in ranks:
            loader = stream("train", rank, world, workers)
            first = values(loader)
            assert len(first) == 4 * len(loader), "it gives as many batches as it says"
            assert first != values(stream("train", rank, world, workers, epoch=1)), "epochs have the same order"
            assert first == values(stream("train", rank, world, workers)), "a resumed run has another order"
    loader = stream("train")
    first = values(loader)
    loader.dataset.set_epoch(1)
    assert values(loader) != first
    loader.dataset.set_epoch(0)
    assert values(loader) == first
    assert "an epoch has 28 samples, equally many for each worker, and the data 26" in caplog.text


def test_a_stream_in_a_run(parquet, tmp_path):
    config = dict(
        batch_size=4,
        num_workers=0,
        sampler=None,
        collate_fn=dict(type="default_collate"),
        dataset=dict(
            type="TimmStream",
            name=f"hfids/{parquet}",
            root=str(tmp_path),
            split="validation",
            transform=SIDE,
            num_samples=16,
        ),
    )
    loader = Runner.build_dataloader(config, seed=0)
    assert len(loader) == 4 and values(loader) == list(range(26, 42))
    with pytest.raises(ConfigError, match="needs the runner of this package, not FlexibleRunner"):
        len(MMRunner.build_dataloader(config, seed=0))


def test_results_of_unequal_processes_count_once(monkeypatch):
    parts = [[0, 9, 0], [9, 9, 9, 9, 0], [0, 0, 9]]
    dealt = []
    monkeypatch.setattr(BaseMetric, "evaluate", lambda self, size: dealt.append(self.results))
    for rank, part in enumerate(parts):
        monkeypatch.setattr(metrics, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(metrics, "all_gather_object", lambda own: parts if isinstance(own, list) else [3, 5, 3])
        metric = Accuracy()
        metric.results = list(part)
        metric.evaluate(11)
    # What mmengine makes of them: one of each in turn, up to the number of samples.
    assert len({len(part) for part in dealt}) == 1
    assert list(itertools.chain(*zip(*dealt, strict=True)))[:11] == sum(parts, [])
    with pytest.raises(DataError, match="saw 11 samples, but the data set has 12; .*num_samples"):
        metric.evaluate(12)


def test_torchvisions_data(image_folder):
    data = TimmDataset("torch/image_folder", str(image_folder), "val", SIDE)
    assert len(data) == 11 and data.metainfo["classes"] == ("class_0", "class_1", "class_2")
    assert data[10]["labels"] == 2 and data[10]["inputs"].shape == (3, 8, 8)


def test_tensorflows_data_need_workers_in_several_processes(monkeypatch):
    reader = SimpleNamespace(num_samples=10, set_loader_cfg=lambda num_workers: None, __len__=lambda: 10)
    monkeypatch.setattr(sources, "create_dataset", lambda *args, **options: SimpleNamespace(reader=reader))
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: True)
    data = TimmStream("tfds/mnist", split="test")
    loader_of(data)
    monkeypatch.setattr(sources, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="split 'test' of 'tfds/mnist' needs a num_workers of 1 or more"):
        loader_of(data)
    loader_of(data, workers=1)


@pytest.mark.parametrize(("kind", "name"), [(TimmDataset, "hfds/x"), (TimmStream, "hfids/x")])
def test_a_missing_package_is_named(kind, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"datasets needs the \[datasets\] extra"):
        kind(name)


def test_mistakes(monkeypatch, tmp_path):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="'tfds/x' needs tensorflow_datasets: pip install tensorflow tensor"):
        TimmStream("tfds/x")
    with pytest.raises(ConfigError, match="'HFIDS/x' is a stream: say type='TimmStream' and sampler=None"):
        TimmDataset("HFIDS/x")
    with pytest.raises(ConfigError, match="reads hfids/ and tfds/, not 'wds/x'"):
        TimmStream("wds/x")
    with pytest.raises(ConfigError, match="'wds/x' needs a root"):
        TimmDataset("wds/x", env="NO_SUCH_VARIABLE")
    with pytest.raises(ConfigError, match="'wds/x' takes no class_map"):
        TimmDataset("wds/x", "here", class_map="names.txt")
    with pytest.raises(ConfigError, match="unknown option 'input_sise'"):
        TimmDataset("wds/x", "here", transform=dict(input_sise=3))
    with pytest.raises(DataError, match="'torch/nothing' cannot be opened: Unknown torchvision dataset nothing"):
        TimmDataset("torch/nothing", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setenv("SHARDS", str(tmp_path / "there"))
        with pytest.raises(DataError, match="there' has no _info.json"):
            TimmDataset("wds/x", env="SHARDS", default_root="elsewhere")

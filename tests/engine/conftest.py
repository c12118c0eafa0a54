"""Tiny data and tiny runs, made on the fly."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import processes

REPO = Path(__file__).parents[2]
BASE = REPO / "configs" / "classification" / "_base_"
_numbers = itertools.count()

RUN = """
_base_ = ["{base}/default_runtime.py"]
model = dict(type="TimmClassifier", model={model}, {classifier})
train_dataloader = dict(
    batch_size={batch_size}, num_workers={workers}, drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ImageFolder", root="{root}", split="train", transform=dict({train_transform})),
)
val_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ImageFolder", root="{root}", split="val", transform=dict(input_size=32, crop_pct=1.0)),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 2))
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="OptimWrapper", constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", T_max=2, by_epoch=True, begin=1, end=3, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs={epochs}, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
{more}
"""


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """A folder in ImageNet's layout: three classes of striped images, 24 to train on and 11 to test on."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, counts in (("train", (8, 8, 8)), ("val", (4, 4, 3))):
        for label, count in enumerate(counts):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 80, (40, 40, 3), dtype=np.uint8)
                image[:: label + 2] += 150
                Image.fromarray(image).save(folder / f"{number}.png")
    return root


@pytest.fixture
def make_config(tmp_path, image_folder):
    """Write a run's config; mmengine keeps loggers by config name and second, so each gets its own name."""

    def write(
        model='dict(name="test_convnext", num_classes=3)',
        classifier="",
        more="",
        epochs=1,
        batch_size=8,
        workers=0,
        train_transform="input_size=32, no_aug=True",
        root=image_folder,
    ) -> Path:
        path = tmp_path / f"run_{os.getpid()}_{next(_numbers)}.py"
        path.write_text(
            RUN.format(
                base=BASE,
                model=model,
                classifier=classifier,
                more=more,
                epochs=epochs,
                batch_size=batch_size,
                workers=workers,
                train_transform=train_transform,
                root=root,
            )
        )
        return path

    return write


@pytest.fixture
def run_tool():
    """Run a tool in a process of its own, see `processes.start`; returns the finished process."""

    def start(name, *words, **options):
        return processes.start(REPO / "tools" / name, *words, **options)

    return start


def logged_losses(work_dir: Path, key: str = "loss") -> dict[int, float]:
    """The loss of each iteration, or a term of it; a resumed run's records replace those of the run it continues."""
    losses = {}
    for file in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if key in record:
                losses[record["iter"]] = record[key]
    return losses

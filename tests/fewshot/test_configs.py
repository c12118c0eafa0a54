"""The recipes build, and their projectors have the published sizes."""

import pytest
import torch
from mmengine.registry import DATASETS
from PIL import Image

from tests.engine.conftest import REPO
from vssm.engine import load_config
from vssm.engine.config import image_size
from vssm.engine.sections import check_sections
from vssm.fewshot import IncrementalClassifier, Recipe
from vssm.published import RUNS

CONFIGS = sorted((REPO / "configs" / "fewshot").glob("*.py"))
# Parameters of the official projectors in the base session and with the second branch.
SIZES = {
    "projector_resnet12_cifar100": (3_295_360, 6_590_720),
    "projector_resnet12_mini-imagenet": (3_063_552, 5_799_424),
    "projector_resnet18_cub200": (9_609_216, 19_844_096),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path):
    cfg = load_config(str(path))
    check_sections(cfg)
    recipe, split = Recipe(**cfg.incremental), cfg.train_dataloader.dataset.split
    cfg.model.model.pretrained = False
    with torch.device("meta"):
        model = IncrementalClassifier(**{key: value for key, value in cfg.model.items() if key != "type"})
    assert split.base == model.base_classes == model.model.classes
    assert split.base + split.ways * split.sessions == cfg.model.classes
    assert cfg.test_dataloader.dataset.split == split
    count = [sum(p.numel() for p in model.model.projector.parameters())]
    model.add_branch(recipe.layers)
    count.append(sum(p.numel() for p in model.model.projector.parameters()))
    assert tuple(count) == SIZES.get(path.stem, tuple(count))
    side = cfg.test_dataloader.dataset.dataset.transform.input_size
    assert image_size(cfg) == (side, side), "what is counted is what the run works at"
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        image = DATASETS.get(loader.dataset.type).transform_from(loader.dataset)(Image.new("RGB", (300, 240)))
        maps = model.model.backbone(image[None].to("meta"))
        assert maps[-1].shape[-2:] == (model.model.projector.size,) * 2
    run = RUNS.get(f"configs/fewshot/{path.name}")
    assert path.stem not in SIZES or list(run.metrics) == [f"Session {i}" for i in range(split.sessions + 1)]

"""The averaged test: scales and flips, through the same tool as any other test."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg")

from mmengine.registry import MODELS, init_default_scope  # noqa: E402

import vssm.mm  # noqa: E402
from vssm.engine import ConfigError, load_config  # noqa: E402
from vssm.engine.run import test as run_test  # noqa: E402

REPO = Path(__file__).parents[2]
CONFIG = """
_base_ = ["{leaf}"]
model = dict(
    backbone=dict(model_name="vmamba_pico", pretrained=False),
    decode_head=dict(in_channels={widths}, channels=16),
    auxiliary_head=dict(in_channels={widths}[2], channels=16),
)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
test_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root="{root}", pipeline=test_pipeline)
)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A segmentor's config and checkpoint, and two labelled images in ADE20K's layout."""
    folder = tmp_path_factory.mktemp("ade")
    random = np.random.default_rng(0)
    for kind, suffix, shape in (("images", "jpg", (40, 56, 3)), ("annotations", "png", (40, 56))):
        (folder / kind / "validation").mkdir(parents=True)
        for number in range(2):
            image = random.integers(1, 151, shape, dtype=np.uint8)
            Image.fromarray(image).save(folder / kind / "validation" / f"{number}.{suffix}")
    from vssm.mm import VSSMBackbone

    widths = VSSMBackbone("vmamba_pico").channels
    leaf = REPO / "configs/segmentation/upernet_vmamba-tiny-s1l8_160k_ade20k-512x512.py"
    config = folder / "upernet_pico.py"
    config.write_text(CONFIG.format(leaf=leaf, widths=widths, root=folder))
    torch.manual_seed(0)
    init_default_scope("mmseg")
    model = MODELS.build(load_config(str(config)).model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / "pico.pth")
    return config, folder / "pico.pth", folder


def test_it_sees_every_scale_and_flip(run, tmp_path, monkeypatch):
    config, checkpoint, _ = run
    seen = []
    forward = vssm.mm.VSSMBackbone.forward
    monkeypatch.setattr(
        vssm.mm.VSSMBackbone, "forward", lambda self, x: (seen.append(tuple(x.shape[2:])), forward(self, x))[1]
    )
    plain = run_test(str(config), str(checkpoint), work_dir=str(tmp_path / "plain"))
    assert seen == [(40, 56)] * 2
    seen.clear()
    averaged = run_test(str(config), str(checkpoint), work_dir=str(tmp_path / "tta"), tta=True)
    scales = [(round(40 * ratio), round(56 * ratio)) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]
    assert sorted(seen) == sorted(scales * 4)
    assert set(averaged) == set(plain) and averaged != plain


def test_a_config_without_it_says_so(run):
    config = REPO / "configs/detection/mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco.py"
    with pytest.raises(ConfigError, match="--tta needs a config with tta_model and tta_pipeline"):
        run_test(str(config), str(run[1]), tta=True)

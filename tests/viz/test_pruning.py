"""Pictures of the patches that a plain net keeps."""

import numpy as np
import pytest
import torch
from PIL import Image

from vssm._cli import run
from vssm.commands import main
from vssm.viz import plot_pruning


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruning")
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    words = ["visualize", "pruning", str(folder / "noise.png"), "--out", str(folder), "--format", "jpg"]
    return folder, lambda *more: run(main, [*words, *map(str, more)])


def test_pruned_patches_are_faded(tmp_path):
    """The left half goes behind one block, all but a corner behind the next."""
    kept = [torch.arange(4).expand(2, -1) > 1, torch.zeros(2, 4, dtype=torch.bool)]
    kept[1][0, 3] = True
    picture = Image.new("RGB", (80, 40), "black")
    shown = np.asarray(Image.open(plot_pruning(picture, kept, (1, 2), tmp_path / "p.png")).convert("L")).astype(float)
    dark = [(shown[:, part] < 40).sum() for part in np.array_split(np.arange(shown.shape[1]), 3)]
    assert dark[1] == pytest.approx(dark[0] / 2, rel=0.1) and dark[2] == pytest.approx(dark[0] / 8, rel=0.2)


def test_command(draw, capsys):
    folder, command = draw
    assert command("--model", "vim_pico", "--sites", 0, 2, "--keep", 0.5) == 0
    assert Image.open(folder / "noise.jpg").size[0] > 1000
    options = ["model.model.pruning.sites=(0,1,2)", "model.model.pruning.keep=0.5"]
    assert command("--config", "vim-pico_digits", "--cfg-options", *options) == 0
    capsys.readouterr()
    for words, said in [
        (["--config", "vim-pico_digits", "--keep", 0, "--cfg-options", *options], "above 0"),
        (["--model", "vim_pico"], "prunes no tokens: say where"),
        (["--model", "vmamba_pico", "--sites", 0, "--keep", 0.5], "is no plain net"),
        (["--model", "vim_pico", "--sites", 7, "--keep", 0.5], "increasing indices of blocks below 4"),
    ]:
        assert command(*words) == 2
        assert said in capsys.readouterr().err
    attention = ["visualize", "attention", str(folder / "noise.png"), "--config", "vim-pico_digits", "--out", folder]
    assert run(main, [*map(str, attention), "--cfg-options", *options]) == 2
    assert "prunes tokens here" in capsys.readouterr().err

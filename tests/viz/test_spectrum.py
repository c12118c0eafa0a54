"""Half-lives of the states of networks."""

import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from vssm._cli import run
from vssm._errors import UserError
from vssm.commands import main
from vssm.models import families
from vssm.scans import S4D2D, SS2D, SSD2D, ContinuousSS2D
from vssm.viz import half_lives_by_stage, plot_half_lives

# Their states are sums over all positions, which nothing fades.
WITHOUT_DECAY = {"vssd", "efficientvim"}


def test_the_half_life_is_that_of_the_scan():
    """A state that was given something once has half of it left then."""
    for mixer in (SS2D(4, d_state=2), ContinuousSS2D(4, d_state=2)):
        with torch.no_grad():
            mixer.dt_projs_bias.fill_(math.log(math.expm1(0.25)) / (1 if isinstance(mixer, SS2D) else 2))
        lives = mixer.half_lives()  # of A = -1 and -2
        torch.testing.assert_close(lives[..., 0], torch.full_like(lives[..., 0], 4 * math.log(2)))
        torch.testing.assert_close(lives[..., 1], torch.full_like(lives[..., 1], 2 * math.log(2)))
    scan = SS2D(1, ssm_ratio=1.0, A_init=-0.5)
    (step,) = torch.nn.functional.softplus(scan.dt_projs_bias[0])
    u = torch.zeros(1, 1, 9, 1)
    u[0, 0, 0] = 1
    ones = torch.ones(1, 1, 9, 4, 1)
    y = scan.scan(u, 0 * ones, ones, ones, scan.route_code, merge=False, skip=False)[0, 0, :, 0, 0]
    torch.testing.assert_close(y, step * 0.5 ** (torch.arange(9) / scan.half_lives()[0, 0, 0]))
    layer = S4D2D(2, d_state=2).ssm
    torch.testing.assert_close(layer.half_lives()[:, 0], math.log(2) / (0.5 * layer.log_dt.exp()))
    assert SSD2D(16).half_lives().shape == (4, 1)


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_family(family):
    network = timm.create_model(f"{family.name}_pico" if family.name != "efficientvim" else "vssm_efficientvim_pico")
    if family.name in WITHOUT_DECAY:
        with pytest.raises(UserError, match="no state that decays"):
            half_lives_by_stage(network)
        return
    found = half_lives_by_stage(network)
    assert list(found)[0] in ("stage 1", "block 1") and all((x > 0).all() for x in found.values())


def test_blocks_of_a_plain_net_are_joined_to_quarters():
    found = half_lives_by_stage(timm.create_model("vim_pico", depth=8))
    assert list(found) == ["block 1 to 2", "block 3 to 4", "block 5 to 6", "block 7 to 8"]


def test_a_picture_shows_what_changed(tmp_path):
    short, long = {"stage 1": torch.rand(50) + 1}, {"stage 1": 100 * (torch.rand(50) + 1)}
    picture = plot_half_lives({"a": (long, short)}, tmp_path / "a.png")
    shown = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    lower = shown[len(shown) * 6 // 10 :]  # below the legend
    blue = (lower[..., 2] > 1.5 * lower[..., 0]).any(0).nonzero()[0]
    assert blue.size and blue.min() > shown.shape[1] / 2  # where the long ones are


def test_command(tmp_path, capsys):
    words = ["visualize", "spectrum", "--out", str(tmp_path / "s.png")]
    assert run(main, [*words, "--model", "vmamba_pico", "vim_pico"]) in (0, None)
    assert Image.open(tmp_path / "s.png").size[0] > 1000
    capsys.readouterr()
    assert run(main, [*words, "--model", "vssd_pico"]) == 2
    assert "no state that decays" in capsys.readouterr().err

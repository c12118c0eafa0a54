"""HyMamba against the numbers of the official network (tests/data/parity/mambamim.json)."""

import functools

import pytest
import torch

from tests import parity
from vssm.checkpoint import CheckpointError
from vssm.medical import create_unet, hymamba
from vssm.medical.checkpoint import checkpoint_filter_fn
from vssm.medical.decoders import HyMambaDecoder
from vssm.medical.hymamba_encoder import grid_positions, to_official

RECORD = parity.load("mambamim")["variants"]["_unit_hybrid"]
ENCODER = dict(dims=(6, 6, 12, 12, 24), depths=(1,) * 4, expand=(2,) * 4, mamba_depth=2, img_size=32)
OUTPUT, GRADIENT = 1e-5, 2e-3


def small(**options):
    torch.manual_seed(0)
    encoder = dict(ENCODER, **options)
    return create_unet("hymamba", num_classes=3, spatial_dims=3, encoder_options=encoder, out_channels=6).eval()


def official() -> dict[str, torch.Tensor]:
    return parity.state_dict(RECORD) | {"mae.pos_embed": grid_positions((2, 2, 2), 24)}


@functools.cache
def unit():
    net = small()
    net.load_state_dict(checkpoint_filter_fn(official(), net))
    return net


def test_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in hymamba().parameters()) == 41_841_134
    assert sum(p.numel() for p in unit().parameters()) == RECORD["params"]


def test_positions():
    expected = torch.tensor(parity.load("mambamim")["ops"]["pos_embed"]["values"])
    torch.testing.assert_close(grid_positions((2, 2, 2), 24).flatten(), expected, rtol=0, atol=1e-6)


def test_output_and_gradients():
    net, (case,) = unit(), RECORD["cases"]
    net.zero_grad()
    parity.check_backward(net, case, OUTPUT, 1e-4)
    names, parameters = parity.gradient_names(RECORD, checkpoint_filter_fn, net), dict(net.named_parameters())
    norms = {key: parameters[names[key]].grad.norm().item() for key in case["grad_l2"]}
    parity.check_norms(norms, case, GRADIENT)
    never = {name for name, p in parameters.items() if p.grad is None}
    assert never == {n for n in parameters if ".unused." in n or n == "encoder.positions"}


def test_official_files_of_the_encoder(tmp_path):
    """Bare, with its mask token, as pre-training saves it, and with the table of another size."""
    mine = {k: v for k, v in official().items() if not k.startswith("decoder.")}
    bare = mine | {"mae.mask_token": torch.zeros(1, 1, 24)}
    layouts = [bare, {"module": {f"sparse_encoder.{k}": v for k, v in bare.items()}, "is_pretrain": True}, mine]
    for number, stored in enumerate(layouts):
        torch.save(stored, tmp_path / f"{number}.pth")
        net = create_unet(
            "hymamba", num_classes=2, spatial_dims=3, encoder_options=ENCODER, pretrained=tmp_path / f"{number}.pth"
        )
        back = to_official(net.encoder.state_dict())
        assert back.keys() == mine.keys()
        assert all(torch.equal(back[name], value) for name, value in mine.items())
    larger = small(img_size=(48, 32, 32)).encoder
    larger.load_state_dict(larger.convert_weights(bare))
    assert larger.positions.shape == (1, 12, 24)
    with pytest.raises(CheckpointError, match="missing stem.weight"):
        larger.convert_weights({k: v for k, v in bare.items() if k != "embeddings.stem.weight"})


@torch.no_grad()
def test_any_size():
    net = unit()
    assert net(torch.randn(1, 1, 20, 33, 16)).shape == (1, 3, 20, 33, 16)
    with torch.no_grad():
        one = net.encoder(torch.ones(1, 1, 48, 16, 32))
    assert [tuple(y.shape[2:]) for y in one][::4] == [(48, 16, 32), (3, 1, 2)]


def test_wrong_requests_are_one_sentence():
    with pytest.raises(ValueError, match="five dims, four depths and four expand, got 5, 3 and 4"):
        small(depths=(1, 1, 1))
    with pytest.raises(ValueError, match="a multiple of 6 for its positions, got 20"):
        small(dims=(6, 6, 12, 12, 20))
    with pytest.raises(ValueError, match="needs a map of the volume's resolution"):
        HyMambaDecoder([4, 8], [(2, 2, 2), (4, 4, 4)])

"""Masked pre-training: the numbers of the official code (tests/data/parity/mambamim.json), and what must hold."""

import math

import pytest
import torch

from tests import parity
from vssm.engine.config import ConfigError
from vssm.medical.hymamba_encoder import grid_positions
from vssm.medical.masked import MaskedPretraining, draw_mask, patchify
from vssm.models.create import ModelError

RECORD = parity.load("mambamim")["variants"]["_unit"]
ENCODER = dict(dims=(6, 6, 12, 12, 24), depths=(1,) * 4, expand=(2,) * 4, mamba_depth=2, img_size=32)
NETWORK = dict(encoder="hymamba", spatial_dims=3, encoder_options=ENCODER)
TOLERANCE = 1e-4


def official():
    return parity.state_dict(RECORD) | {"sparse_encoder.mae.pos_embed": grid_positions((2, 2, 2), 24)}


def unit(**options):
    """The slip of the layout is in the recorded numbers."""
    torch.manual_seed(0)
    net = MaskedPretraining(NETWORK, decoder_dim=32, **{"mix_layout": True, **options})
    net.load_state_dict(net.convert_weights(official()))
    return net.eval()


def mask_of(*masks):
    return torch.tensor(masks, dtype=torch.bool).view(len(masks), 1, 2, 2, 2)


def test_parameters():
    """All but those that never get a gradient, which are left out."""
    unread = ("dense_decoder.fuse.0.", "densify_projs.4.", "mask_tokens.0", "mask_tokens.4")
    left = sum(
        math.prod(shape)
        for key, shape in RECORD["state_dict"].items()
        if key.startswith(unread) and "running" not in key and "tracked" not in key
    )
    assert sum(p.numel() for p in unit().parameters()) == RECORD["params"] - left


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: str(case["seed"]))
@torch.no_grad()
def test_maps_and_losses(case):
    net, x, visible = unit(), parity.image(case), mask_of(case["mask"])
    maps = net.encode(x, visible)
    for i, (got, summary) in enumerate(zip(maps, case["features"], strict=True)):
        parity.check_summary(got, summary, TOLERANCE, f"map {i}")
    # The fifth dense map is of the full resolution; nothing reads it.
    for i, (got, summary) in enumerate(zip(net.densify(maps, visible), case["to_dec"][:4], strict=True)):
        parity.check_summary(got, summary, TOLERANCE, f"dense map {i}")
    parity.check_summary(net.reconstruct(x, visible), case["reconstruction"], TOLERANCE, "reconstruction")
    assert net(x, mode="loss", visible=visible)["loss"].item() == pytest.approx(case["loss"], rel=1e-5)
    net.train()
    parity.check_summary(net.reconstruct(x, visible), case["reconstruction_train"], TOLERANCE, "in training")
    assert unit().train().losses(x, visible).item() == pytest.approx(case["loss_train"], rel=1e-5)


def test_gradients():
    net, case = unit().train(), RECORD["grad_case"]
    x = parity.image(case).requires_grad_()
    net.losses(x, mask_of(case["mask"])).sum().backward()
    parity.check_summary(x.grad, case["grad_input"], 2e-3, "input gradient")
    norms = {k: p.grad.norm().item() for k, p in net.named_parameters() if p.grad is not None}
    found = parity.gradient_names(RECORD, lambda marked, model: model.convert_weights(marked), net)
    for key, expected in case["grad_l2"].items():
        assert norms[found[key]] == pytest.approx(expected, rel=2e-3, abs=1e-6), key
    for key in set(case["without_gradient"]) & found.keys():
        assert found[key] not in norms, key


@torch.no_grad()
def test_a_batch_is_its_samples():
    case = RECORD["batch_of_two"]
    x, visible = parity.image(case), mask_of(*case["masks"])
    net = unit()
    losses = net.losses(x, visible)
    assert losses.tolist() == pytest.approx(case["loss_of_each_alone"], rel=1e-6)
    assert net.losses(x.flip(0), visible.flip(0)).tolist() == pytest.approx(losses.flip(0).tolist(), rel=1e-6)
    for one, pixels, mask in zip(losses, x, visible, strict=True):
        assert net.losses(pixels[None], mask[None]).item() == pytest.approx(one.item(), rel=1e-6)
    released = unit(keep_batch=True)
    assert released(x, mode="loss", visible=visible)["loss"].item() == pytest.approx(case["loss_official"], rel=1e-6)
    for mine, theirs in zip(net.encode(x, visible), released.encode(x, visible), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_intended_layout():
    """Places are not mixed with channels: with A = 0 a gap's last place has the next token, all of it."""
    net = unit(mix_layout=False, tokens="interpolate")
    net.interpolation.zero_()
    net.projections["0"] = torch.nn.Identity()
    x = torch.randn(1, 24, 2, 2, 2)
    visible = mask_of([1, 0, 0, 1, 0, 1, 1, 0])
    dense = net.densify(
        [torch.zeros(1, c, *[n] * 3) for c, n in zip((6, 12, 12, 24), (32, 16, 8, 4), strict=True)] + [x], visible
    )
    tokens, filled = x.flatten(2), dense[0].flatten(2)
    expected = tokens.clone()
    expected[..., [1, 4]] = 0
    expected[..., 1], expected[..., 2], expected[..., 4], expected[..., 7] = 0, tokens[..., 3], tokens[..., 5], 0
    torch.testing.assert_close(filled, expected)


@pytest.mark.parametrize("tokens", ["interpolate", "learned"])
@pytest.mark.parametrize(
    ("network", "size"),
    [
        (NETWORK, (32, 48, 32)),  # a grid of (2, 3, 2)
        (dict(encoder="vmamba3d_pico", spatial_dims=3, encoder_options=dict(strides=[(1, 2, 2), 2, 2])), (4, 24, 16)),
        (dict(encoder="vmamba_pico"), (64, 96)),
        (dict(encoder="resnet10t", in_chans=1), (96, 64)),
    ],
    ids=["hymamba", "vmamba3d", "vmamba", "resnet"],
)
def test_any_encoder(network, size, tokens):
    torch.manual_seed(0)
    net = MaskedPretraining(network, mask_ratio=0.5, decoder_dim=32, tokens=tokens).train()
    x = torch.randn(2, net.in_chans, *size)
    first = net(image=x, mode="loss", labels=None)["loss"]
    first.backward()
    assert 0.5 < first.item() < 2
    missing = {n for n, p in net.named_parameters() if p.requires_grad and p.grad is None}
    assert all(n.startswith("encoder.skips.0.") for n in missing)
    assert net(inputs=x).shape == x.shape
    # Everything visible: the sparse form is the dense one.
    net.eval()
    with torch.no_grad():
        maps = net.encode(
            x, torch.ones(2, 1, *(n // s for n, s in zip(size, net.stride, strict=True)), dtype=torch.bool)
        )
        for mine, dense in zip(maps, net.encoder(x), strict=True):
            torch.testing.assert_close(mine, dense, rtol=1e-4, atol=1e-4)


def test_masks():
    masks = draw_mask(64, (6, 6, 6), 0.75, torch.Generator().manual_seed(0))
    assert masks.shape == (64, 1, 6, 6, 6) and set(masks.flatten(1).sum(1).tolist()) == {54}
    assert masks.unique(dim=0).shape[0] == 64 and masks.float().mean(0).max() < 0.6
    with pytest.raises(ConfigError, match=r"mask_ratio of 0.75 leaves 0 of 1 cells \(1 x 1\)"):
        draw_mask(2, (1, 1), 0.75)


def test_patches():
    expected = torch.tensor(parity.load("mambamim")["ops"]["patchify"]["values"])
    assert torch.equal(patchify(torch.arange(64).view(1, 1, 4, 4, 4), (2, 2, 2)).flatten(), expected)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (dict(tokens="zeros"), ConfigError, r"model.tokens is one of \('interpolate', 'learned'\), not 'zeros'"),
        (dict(mask_ratio=1.0), ConfigError, "a share between 0 and 1, not 1.0"),
        (dict(decoder_dim=12), ConfigError, "halved 4 times for this encoder, which 12 cannot be"),
        (dict(network=dict(encoder="hymamba", spatial_dims=1)), ModelError, "must be 2 .* or 3 .*, got 1"),
        (dict(network=dict(encoder="hymamb", spatial_dims=3)), ModelError, "The encoder 'hymamb' cannot be built"),
    ],
)
def test_wrong_requests_are_one_sentence(options, kind, sentence):
    with pytest.raises(kind, match=sentence):
        MaskedPretraining(**{"network": NETWORK, "decoder_dim": 32, **options})


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"multiples of the encoder's strides \(16, 16, 16\), not \(32, 40, 32\)"):
        unit()(torch.zeros(1, 1, 32, 40, 32), mode="loss")

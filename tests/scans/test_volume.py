"""SS3D, against SS2D on one plane and against its own linear form."""

import pytest
import torch

from vssm.scans import CROSS, CROSS_3D, SS2D, SS3D, TRI_ORIENTED, encode_routes, route_names, scan_weights
from vssm_kernels import Route, route_order


@pytest.mark.parametrize("options", [{}, {"gate": True, "d_state": 3, "conv_bias": True}, {"d_conv": 1}], ids=str)
def test_one_plane_is_an_ss2d(options):
    torch.manual_seed(0)
    volume = SS3D(6, routes=CROSS_3D[:2] + CROSS_3D[3:5], **options).double()
    plane = SS2D(6, routes=CROSS, **options).double()
    weights = volume.state_dict()
    if "conv.weight" in weights:
        weights["conv.weight"] = weights["conv.weight"][:, :, 1]  # the middle plane, all that one plane sees
    plane.load_state_dict(weights)
    x = torch.randn(2, 5, 4, 6).double()
    torch.testing.assert_close(volume(x[:, None])[:, 0], plane(x))


@pytest.mark.parametrize("routes", [CROSS_3D, TRI_ORIENTED], ids=["cross", "tri-oriented"])
def test_what_reaches_a_voxel(routes):
    """All voxels before and after it on some route, and every parameter has a gradient."""
    mixer = SS3D(4, routes=routes, d_conv=1)
    x = torch.randn(2, 3, 2, 5, 4, requires_grad=True)
    y = mixer(x)
    assert y.shape == x.shape
    (reach,) = torch.autograd.grad(y[0, 1, 1, 2].sum(), x, retain_graph=True)
    assert (reach[0].abs().sum(-1) > 0).all() and not reach[1].any()
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


def test_the_linear_form_gives_the_scan():
    mixer, x = SS3D(4, routes=TRI_ORIENTED), torch.randn(1, 2, 3, 2, 4)
    (scan,) = mixer.linear_scans(x)
    assert scan.routes == ("axes 0 1 2", "axes 0 1 2, backwards", "axes 1 2 0")
    with torch.no_grad():
        y = scan.apply(scan.source).sum(-2)
    weights = scan_weights(scan, torch.arange(12))  # (Q, D, H, W, channels)
    torch.testing.assert_close((weights * scan.source).sum((1, 2, 3)), y.flatten(0, 3), rtol=1e-4, atol=1e-6)


def test_names_and_walks_of_the_patterns():
    assert route_order(CROSS_3D[2], 2, 2, 2).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]  # along D first
    assert {route.axes[-1] for route in CROSS_3D} == {0, 1, 2} and len(set(CROSS_3D)) == 6
    assert route_names(encode_routes((Route(axes=(2, 0, 1), path="snake", mirror=(True, False, True)),))) == (
        "snake over axes 2 0 1, mirrored",
    )


def test_routes_of_another_rank_are_refused():
    with pytest.raises(ValueError, match="SS3D: the routes must be over 3 dimensions, got routes over 2"):
        SS3D(4, routes=CROSS)
    with pytest.raises(ValueError, match="SS2D: the routes must be over 2 dimensions, got routes over 3"):
        SS2D(4, routes=CROSS_3D)

"""Recurrences in two dimensions: own numbers, one-dimensional scans as special cases, and mirrors."""

import numpy as np
import pytest
import timm
import torch

from tests import parity
from vssm.scans import (
    CORNERS,
    SS2D,
    Roesser2D,
    Route,
    RowsColumnsSS2D,
    roesser_scan,
    roesser_scan_reference,
    rows_columns_scan,
    scan_weights,
)
from vssm_kernels import selective_scan

OPS = parity.load("state_space_variants")["ops"]
MIXERS = [Roesser2D, RowsColumnsSS2D]


def test_the_vectors_of_the_roesser_form():
    rng = np.random.RandomState(32)
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape))  # noqa: E731
    u = draw(2, 4, 5).movedim(0, -1)[None, ..., None]  # (1, H, W, D, 1)
    A = [torch.sigmoid(draw(2, 3)) / 2 for _ in range(4)]
    B1, B2 = (torch.sigmoid(draw(2, 3)) / 2 for _ in range(2))
    C1, C2 = draw(2, 3), draw(2, 3)
    h1, h2 = roesser_scan(*(a.expand(1, 4, 5, 2, 3) for a in A), B1 * u, B2 * u)
    y = (C1 * h1 + C2 * h2).sum(-1)[0].movedim(-1, 0)
    expected = torch.tensor(OPS["ssm_2d"]["y"], dtype=torch.float64).view(2, 4, 5)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-7)  # as many digits as the file has


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 5), (5, 3)])
def test_the_wavefront_is_the_reference(size):
    torch.manual_seed(0)
    inputs = [torch.rand(2, *size, 3, 2).double().requires_grad_(True) for _ in range(6)]
    results, expected = roesser_scan(*inputs), roesser_scan_reference(*inputs)
    weights = [torch.randn_like(x) for x in expected]
    for got, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    got, wanted = (
        torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, given, strict=True)), inputs)
        for given in (results, expected)
    )
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_without_coupling_each_row_and_each_column_is_a_scan():
    torch.manual_seed(0)
    a1, a4, x1, x2 = (torch.rand(1, 3, 4, 2, 1).double() for _ in range(4))
    zero = torch.zeros_like(a1)
    h1, h2 = roesser_scan(a1, zero, zero, a4, x1, x2)
    ones = torch.ones(3, 1, 4).double()
    for i in range(3):  # u = x / step, where the decay is exp(-step)
        step = -a1[0, i, ..., 0].log().T[None]
        y = selective_scan(x1[0, i, ..., 0].T[None] / step, step, -torch.ones(2, 1).double(), ones[:1], ones[:1])
        torch.testing.assert_close(h1[0, i, ..., 0].T[None], y)
    transposed, _ = roesser_scan(*(x.transpose(1, 2) for x in (a4, zero, zero, a1, x2, x1)))
    torch.testing.assert_close(h2, transposed.transpose(1, 2))


def test_rows_and_then_columns():
    """One row is a scan of it; one of decay 1 gives the sums of all rectangles."""
    x = torch.rand(1, 4, 5, 2, 3).double()
    torch.testing.assert_close(rows_columns_scan(torch.ones_like(x), x), x.cumsum(1).cumsum(2))
    a, row = torch.rand(2, 1, 1, 6, 1, 1).double()
    h, expected = 0, []
    for t in range(6):
        h = a[0, 0, t] * h + row[0, 0, t]
        expected.append(h)
    torch.testing.assert_close(rows_columns_scan(a, row)[0, 0], torch.stack(expected))


@pytest.mark.parametrize("size", [(1, 7), (7, 1)])
def test_a_single_row_or_column_is_the_scan_along_it(size):
    """Of rows and then columns, with the parameters of an SS2D: two corners walk it forwards, two backwards."""
    torch.manual_seed(0)
    along = Route(), Route(reverse=True)
    backwards = [corner[size.index(7)] for corner in CORNERS]
    cross = SS2D(4, d_state=2, routes=tuple(along[b] for b in backwards)).double()
    mixer = RowsColumnsSS2D(4, d_state=2).double()
    mixer.load_state_dict(cross.state_dict())
    x = torch.randn(2, *size, 4).double()
    torch.testing.assert_close(mixer(x), cross(x))


def test_a_single_row_of_the_roesser_form():
    """Almost without coupling, from the rows' states alone, it is the scan along the row."""
    torch.manual_seed(0)
    mixer = Roesser2D(4, d_state=2, coupling=1e-12).double()
    cross = SS2D(4, d_state=2, routes=(Route(), Route(reverse=True), Route(reverse=True), Route())).double()
    u, dt, B, C = (torch.randn(1, 1, 6, *shape).double() for shape in ((8,), (8, 1), (8, 2), (8, 2)))
    with torch.no_grad():
        C[:, :, :, 1::2] = 0  # what reads the columns' states
        for name in ("dt_projs_weight", "dt_projs_bias"):
            getattr(cross, name).copy_(getattr(mixer, name)[::2])
    expected = cross.scan(u, dt[:, :, :, ::2], B[:, :, :, ::2], C[:, :, :, ::2], cross.route_code, False, False)
    torch.testing.assert_close(mixer.from_corners(u, dt, B, C), expected)


def mirror_parameters(mixer, flip):
    """Exchange the parameters of corners as a mirror of the map exchanges the corners."""
    order = [CORNERS.index(tuple(a != b for a, b in zip(corner, flip, strict=True))) for corner in CORNERS]
    state = mixer.state_dict()
    for key in ("x_proj.weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds", "couplings"):
        if key in state:
            state[key] = state[key].unflatten(0, (4, -1))[order].flatten(0, 1)
    if "conv.weight" in state:
        state["conv.weight"] = state["conv.weight"].flip([i + 2 for i, f in enumerate(flip) if f])
    mixer.load_state_dict(state)


@pytest.mark.parametrize("flip", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("mixer_cls", MIXERS)
def test_a_mirrored_map_gives_a_mirrored_result(mixer_cls, flip):
    torch.manual_seed(0)
    mixer = mixer_cls(4, d_state=2, gate=True).double()
    x = torch.randn(2, 3, 5, 4).double()
    axes = [i + 1 for i, f in enumerate(flip) if f]
    expected = mixer(x).flip(axes)
    mirror_parameters(mixer, flip)
    torch.testing.assert_close(mixer(x.flip(axes)), expected)


@pytest.mark.parametrize("mixer_cls", MIXERS)
def test_what_a_pixel_takes(mixer_cls):
    """Everything, from some corner; no other image; every parameter has a gradient; the linear form gives the scan."""
    torch.manual_seed(0)
    mixer = mixer_cls(4, d_state=2, d_conv=1)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = mixer(x)
    (reach,) = torch.autograd.grad(y[0, 1, 1].sum(), x, retain_graph=True)
    assert (reach[0].abs().sum(-1) > 0).all() and not reach[1].any()
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in mixer.parameters())
    (scan,) = mixer.linear_scans(x[:1])
    with torch.no_grad():
        alone = scan.apply(scan.source)
    assert alone.shape[3] == len(scan.routes) == 4
    merged = (scan_weights(scan, torch.arange(12)) * scan.source).sum((1, 2))
    torch.testing.assert_close(merged, alone.sum(3).flatten(0, 2), rtol=1e-4, atol=1e-5)
    # From the top left, pixel (1, 1) takes from the rectangle above and left of it.
    rectangle = scan_weights(scan, torch.tensor([5]), route=0)[0].abs().sum(-1) > 0
    assert rectangle.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("mixer", ["roesser", "rows_columns"])
def test_a_backbone_of_it(mixer):
    model = timm.create_model("vmamba_pico", mixer=mixer, num_classes=3)
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 3)


def test_what_is_refused():
    with pytest.raises(ValueError, match="coupling must be between 0 and 1, got 1"):
        Roesser2D(4, coupling=1)
    with pytest.raises(ValueError, match="mixer must be ss2d, s4d, roesser, rows_columns, got 's6'"):
        timm.create_model("vmamba_pico", mixer="s6")
    for options in (dict(scan="cascade"), dict(ssd=True), dict(scan="unidirectional")):
        with pytest.raises(ValueError, match="VMamba: mixer='roesser' takes neither"):
            timm.create_model("vmamba_pico", mixer="roesser", **options)

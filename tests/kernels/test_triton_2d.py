"""The Triton scan of maps against float64 autograd through the reference: on a GPU, or in Triton's interpreter."""

import pytest
import torch

from tests.scan_2d import CROSS, NAMES_2D, ROUTES, assert_close_2d, expected_2d, gradient_2d, make_2d
from vssm_kernels import Route, encode_routes, selective_scan_2d
from vssm_kernels.tables import forget_tables

pytest.importorskip("triton")
from vssm_kernels.triton import map_form, map_launch, map_tables  # noqa: E402
from vssm_kernels.triton import selective_scan_2d as triton_scan  # noqa: E402
from vssm_kernels.triton.launch import Blocks  # noqa: E402

PAIR = (Route(), Route(transpose=True, reverse=True))
# The interpreter takes a tenth of a second for a tile of one program.
SMALL = dict(batch=1, height=3, width=6, channels=5, states=1)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what torch.empty returns with NaN: an output or a scratch place that is read but never written shows up."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan")))


def computed_2d(device, inputs, routes, grad, softplus=True, merge=True, out_dtype=torch.float32, **how):
    code = encode_routes(routes)
    values = [None if x is None else x.to(device) for x in inputs.values()]
    y = triton_scan.selective_scan_2d_fwd(*values, code, softplus, merge, out_dtype, **how)
    grads = triton_scan.selective_scan_2d_bwd(grad.to(device), *values, code, softplus, merge, **how)
    return [None if x is None else x.cpu() for x in (y, *grads)]


def check_2d(device, routes, softplus=True, merge=True, tolerance=3e-6, chunks=None, blocks=None, **form):
    inputs = make_2d(routes, softplus=softplus, **{**SMALL, **form})
    grad = gradient_2d(inputs, routes, merge)
    got = computed_2d(device, inputs, routes, grad, softplus, merge, chunks=chunks, blocks=blocks)
    assert_close_2d(got, expected_2d(inputs, routes, grad, softplus, merge), tolerance)


@pytest.mark.parametrize("name", ROUTES)
def test_routes(triton_device, name):
    check_2d(triton_device, ROUTES[name])


@pytest.mark.parametrize("name", ["strided", "joined", "some-empty"])
def test_routes_of_own_inputs_kept_apart(triton_device, name):
    check_2d(triton_device, ROUTES[name], merge=False, own_input=True, rank=None)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (5, 7)])
def test_sizes(triton_device, size):
    check_2d(triton_device, PAIR, height=size[0], width=size[1], batch=2)


@pytest.mark.parametrize("states", [2, 3, 16, 40])
def test_states(triton_device, states):
    check_2d(triton_device, PAIR, states=states, height=2, width=9)


@pytest.mark.parametrize("absent", [("C",), ("D",), ("delta_bias",), ("C", "D", "delta_bias")])
@pytest.mark.parametrize("softplus", [True, False])
def test_options(triton_device, absent, softplus):
    check_2d(triton_device, PAIR[:1], softplus, states=1 + softplus, absent=absent)


@pytest.mark.parametrize("rank", [1, 16, 17, map_launch.MAX_RANK + 1])
def test_ranks_and_blocks_of_channels(triton_device, rank):
    check_2d(triton_device, (Route(transpose=True),), rank=rank, channels=35)


@pytest.mark.parametrize("chunks", [2, 3])
@pytest.mark.parametrize("form", [{}, dict(merge=False, own_input=True, states=3), dict(absent=("C", "D"))])
def test_two_passes(triton_device, chunks, form):
    joined = ((Route(reverse=True), Route(stride=(1, 2)), Route(transpose=True)),)
    check_2d(triton_device, joined, chunks=chunks, height=4, width=7, **form)


def test_two_passes_are_chosen_for_few_programs(triton_device):
    def chunks(batch, size, channels):
        x = make_2d(CROSS, batch=batch, height=size, width=size, channels=channels)
        launch = map_launch.Launch(tuple(x.values()), encode_routes(CROSS), True, False)
        assert (
            (launch.chunks - 1) * launch.tiles_per_chunk < launch.walk.tiles <= launch.chunks * launch.tiles_per_chunk
        )
        return launch.chunks

    assert chunks(1, 64, 32) > 16
    assert chunks(1, 7, 32) == 1
    assert chunks(512, 8, 32) == 1


@pytest.mark.parametrize(
    "blocks",
    [
        Blocks(block_d=2, block_n=4, run=2, lanes=1, num_warps=1),
        Blocks(block_d=16, block_n=2, run=32, lanes=1, num_warps=4),  # Triton 3.2 multiplies no less than 16 x 16
    ],
)
def test_blocks_do_not_change_the_result(triton_device, blocks):
    check_2d(triton_device, PAIR, blocks=blocks, states=2, height=2, width=5)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("states", [1, 2, 3, 8, 16, 33, 64, 256])
def test_blocks_are_powers_of_two_that_cover_the_states(states, backward):
    for channels in (1, 5, 96, 768):
        blocks = map_launch.choose_blocks_2d(channels, states, backward)
        assert all(size & (size - 1) == 0 and size >= 1 for size in blocks)
        assert blocks.block_n >= states


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("out_dtype", "rank"), [(None, 3), (torch.float32, 3), (torch.float32, 33), (None, None)])
def test_half_inputs(triton_device, dtype, out_dtype, rank):
    inputs = make_2d(PAIR, rank=rank, **SMALL)
    for name in ("u", "dt", "B", "C"):
        inputs[name] = inputs[name].to(dtype)
    out_dtype = out_dtype or dtype
    grad = gradient_2d(inputs, PAIR).to(out_dtype)
    got = computed_2d(triton_device, inputs, PAIR, grad, out_dtype=out_dtype)
    for i, (x, (ref, scale)) in enumerate(zip(got, expected_2d(inputs, PAIR, grad), strict=True)):
        if ref is None:
            assert x is None
            continue
        assert x.dtype == (out_dtype if i == 0 else dtype if i in (1, 2, 4, 5) else torch.float32)
        # Everything is computed in float32, the step size expanded too; what is rounded is the result, of each route
        # where the inputs are bfloat16.
        exact = x.dtype == torch.float32 and (i, dtype) != (0, torch.bfloat16)
        tolerance = 3e-6 if exact else torch.finfo(dtype).eps
        assert (x.double() - ref).abs().max().item() <= tolerance * scale


def test_routes_that_share_a_map_are_not_rounded(triton_device):
    routes = tuple(Route(stride=(2, 1), offset=(i, 0)) for i in (0, 1))
    inputs = make_2d(routes, **SMALL)
    half = dict.fromkeys(("u", "dt", "B", "C"), torch.bfloat16)
    inputs = {name: x.to(half.get(name)) for name, x in inputs.items()}
    y = triton_scan.selective_scan_2d_fwd(
        *(x.to(triton_device) for x in inputs.values()), encode_routes(routes), True, True, torch.float32
    )
    want, scale = expected_2d(inputs, routes, gradient_2d(inputs, routes))[0]
    assert (y.cpu().double() - want).abs().max() <= 3e-6 * scale


BACK_AND_FORTH = (Route(reverse=True), Route())
ODD_AND_EVEN_ROWS = tuple(
    Route(stride=(2, 1), offset=(i, 0), reverse=reverse) for reverse in (False, True) for i in (0, 1)
)


@pytest.mark.parametrize(
    ("routes", "form"),
    [
        (CROSS, {}),
        (CROSS, dict(rank=None, absent=("C", "D", "delta_bias"), batch=2)),
        (BACK_AND_FORTH, dict(height=1, width=1)),
        (BACK_AND_FORTH, dict(height=5, width=7, states=3, channels=35)),
        (BACK_AND_FORTH, dict(states=16, height=17, width=1)),
        (ODD_AND_EVEN_ROWS, dict(height=7, softplus=False)),
        ((Route(path="spiral"), Route(path="spiral", reverse=True)), dict(states=2)),
    ],
)
def test_pairs(triton_device, routes, form):
    softplus = form.pop("softplus", True)
    inputs = make_2d(routes, softplus=softplus, **{**SMALL, **form})
    grad = gradient_2d(inputs, routes)
    y, scale = expected_2d(inputs, routes, grad, softplus)[0]
    values = [None if x is None else x.to(triton_device) for x in inputs.values()]
    how = encode_routes(routes), softplus, True, torch.float32
    for form in ({}, dict(paired=True), dict(paired=True, ahead=True), dict(ahead=True, chunks=2)):
        got = triton_scan.selective_scan_2d_fwd(*values, *how, **form)
        assert got.shape == y.shape and (got.cpu().double() - y).abs().max() <= 3e-6 * scale


def test_a_pair_is_rounded_once(triton_device):
    """In float16: the interpreter does not round to bfloat16 but cuts off."""
    inputs = make_2d(BACK_AND_FORTH, **SMALL)
    half = dict.fromkeys(("u", "dt", "B", "C"), torch.float16)
    values = [x.to(triton_device, half.get(name)) for name, x in inputs.items()]
    how = encode_routes(BACK_AND_FORTH), True, True
    exact = triton_scan.selective_scan_2d_fwd(*values, *how, torch.float32, paired=True)
    rounded = triton_scan.selective_scan_2d_fwd(*values, *how, torch.float16, paired=True)
    assert torch.equal(rounded, exact.half())


@pytest.mark.parametrize(
    ("routes", "pairs"),
    [
        (CROSS, [[0, 1], [2, 3]]),
        (BACK_AND_FORTH, [[0], [1]]),
        (ODD_AND_EVEN_ROWS, [[0, 1], [2, 3]]),
        ((Route(), Route(mirror=(True, True))), [[0], [1]]),
        ((Route(path="snake"), Route(path="snake", reverse=True)), [[0], [1]]),
        ((Route(), Route(path="snake", reverse=True)), None),
        (PAIR, None),
        ((Route(), Route(reverse=True), Route(transpose=True)), None),
        (((Route(), Route(transpose=True)), (Route(transpose=True, reverse=True), Route(reverse=True))), None),
        (ROUTES["strided"], None),
        (ROUTES["joined"], None),
    ],
)
def test_pairs_visit_the_same_tiles(routes, pairs):
    walk = map_tables.walk_tables(tuple(encode_routes(routes)), 5, 7, 16, True, torch.device("cpu"))
    assert (None if walk.pairs is None else walk.pairs.tolist()) == pairs
    for k, twin in walk.pairs.mT.tolist() if pairs else []:
        tiles = -(-int(walk.table[k, 1]) // 16)
        order, back = (walk.order[int(walk.table[i, 0]) :][: 16 * tiles] for i in (k, twin))
        assert torch.equal(order, back.flip(0))


@pytest.mark.parametrize(
    ("routes", "merge", "own_input", "message"),
    [(CROSS, False, False, "kept apart"), (CROSS, True, True, "one map"), (PAIR, True, False, "opposite order")],
)
def test_what_cannot_be_paired_is_refused(triton_device, routes, merge, own_input, message):
    inputs = [x.to(triton_device) for x in make_2d(routes, **SMALL, own_input=own_input).values()]
    with pytest.raises(ValueError, match=message):
        triton_scan.selective_scan_2d_fwd(*inputs, encode_routes(routes), True, merge, torch.float32, paired=True)


def test_the_form_chosen_is_taken_and_the_same_for_all_sizes(triton_device, monkeypatch):
    """The last form, which in the forward is the paired one."""
    forget_tables()  # and the launches with them
    kinds = []

    def choose(kernels, kind, forms, call, x):
        kinds.append((kind, forms))
        return forms[-1], True

    scans = []
    scan = map_launch.Launch.scan
    monkeypatch.setattr(map_launch.Launch, "scan", lambda self, *x, **how: (scans.append(how), scan(self, *x, **how)))
    monkeypatch.setattr(map_form, "choose_form", choose)
    monkeypatch.setattr(map_launch, "FEW_WARPS", 1)
    for batch, height, width in ((1, 3, 6), (2, 2, 3)):
        check_2d(triton_device, BACK_AND_FORTH, batch=batch, height=height, width=width, states=2)
    assert sum(how.get("twins") is not None for how in scans) == 2
    assert len(kinds) == 4 and len(set(kinds)) == 2


def test_any_strides(triton_device):
    plain = make_2d(PAIR, **SMALL)
    views = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in plain.items() if x.dim() > 3}
    views["u"] = plain["u"].movedim(-1, 1).contiguous().movedim(1, -1)
    views["B"] = torch.stack([plain["B"], plain["B"]], dim=-1)[..., 0]
    views["A"] = plain["A"].mT.contiguous().mT
    grad = gradient_2d(plain, PAIR)
    want = computed_2d(triton_device, plain, PAIR, grad)
    got = computed_2d(triton_device, {**plain, **views}, PAIR, grad.transpose(1, 2).contiguous().transpose(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    shared = plain["B"][:, :, :, :1]
    want = computed_2d(triton_device, {**plain, "B": shared.repeat(1, 1, 1, 2, 1)}, PAIR, grad)
    got = computed_2d(triton_device, {**plain, "B": shared.expand(-1, -1, -1, 2, -1)}, PAIR, grad)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_extreme_steps(triton_device):
    inputs = make_2d(PAIR, **{**SMALL, "states": 2}, rank=None)
    inputs["dt"] = torch.linspace(-40, 40, inputs["dt"].numel()).view(inputs["dt"].shape)
    inputs["A"] = inputs["A"] * 100
    grad = gradient_2d(inputs, PAIR)
    got = computed_2d(triton_device, inputs, PAIR, grad)
    assert_close_2d(got, expected_2d(inputs, PAIR, grad), 4e-6)


def test_images_a_part_of_a_pixel_apart(triton_device):
    plain = make_2d(PAIR, **{**SMALL, "batch": 2, "height": 2})
    u = plain["u"]
    row = torch.zeros(2, u[0].numel() + 1)  # images lie one number further apart than their pixels take
    row[:, :-1] = u.flatten(1)
    odd = row[:, :-1].unflatten(1, u.shape[1:])
    assert odd.stride(0) % u.shape[-1]
    got, want = (
        triton_scan.selective_scan_2d_fwd(
            *(x.to(triton_device) for x in {**plain, "u": x}.values()), encode_routes(PAIR), True, True, torch.float32
        )
        for x in (odd, u)
    )
    assert torch.equal(got, want)


def test_gradients_are_deterministic(triton_device):
    inputs = make_2d(PAIR, **{**SMALL, "channels": 40})
    grad = gradient_2d(inputs, PAIR)
    first, second = (computed_2d(triton_device, inputs, PAIR, grad, chunks=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_disjoint_routes_share_a_map():
    sets = map_tables.sets_of_disjoint
    assert sets([Route(stride=(2, 2), offset=(i, j)) for i in (0, 1) for j in (0, 1)]) == [0, 0, 0, 0]
    assert sets(list(CROSS)) == [0, 1, 2, 3]
    assert sets([Route(stride=(2, 1)), Route(stride=(4, 1), offset=(1, 0)), Route(stride=(3, 1))]) == [0, 0, 1]


def test_maps_too_large_for_32_bits_take_the_composed_scan(triton_device, monkeypatch):
    forget_tables()  # and the launches with them
    x = torch.empty(1, device="meta").expand(1, 5000, 5000, 96)
    assert not map_launch.fits(encode_routes(CROSS), x)
    assert map_launch.fits(encode_routes(CROSS), x[:, :1000, :1000])
    # A gradient and an expanded step size in which the sequences lie outermost, over all images of the batch.
    for images, small in ((1500, True), (4000, False)):
        grad = torch.empty(4, images, 56, 56, 96, device="meta").permute(1, 2, 3, 0, 4)
        assert map_launch.fits(encode_routes(CROSS), grad[..., 0, :], grad) == small
        u, A = grad[..., 0, :], torch.empty(4, 96, 1, device="meta")
        dt, weight = u.new_empty(*u.shape[:3], 4, 48), u.new_empty(4, 96, 48)
        B = u.new_empty(*u.shape[:3], 4, 1)
        launch = map_launch.Launch((u, dt, A, B, B, None, None, weight), encode_routes(CROSS), True, False)
        assert launch.expands and launch.expanded_step_fits() == small
    with monkeypatch.context() as patch:
        patch.setattr(triton_scan, "fits", lambda *args: False)
        check_2d(triton_device, PAIR[:1], tolerance=1e-5, height=2)
    forget_tables()


def test_float64_is_refused(triton_device):
    inputs = [x.double().to(triton_device) for x in make_2d(PAIR, **SMALL).values()]
    with pytest.raises(TypeError, match="float64"):
        triton_scan.selective_scan_2d_fwd(*inputs, encode_routes(PAIR), True, True, torch.float64)


def test_the_op_takes_the_fused_kernels(triton_device):
    inputs = make_2d(PAIR, **SMALL)
    grads = []
    for backend in ("triton", "torch"):
        leaves = {k: x.to(triton_device).requires_grad_() for k, x in inputs.items()}
        y = selective_scan_2d(**leaves, routes=PAIR, backend=backend)
        y.sum().backward()  # an expanded gradient
        grads.append([y, *(leaves[name].grad for name in NAMES_2D)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

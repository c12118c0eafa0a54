"""Derivatives beyond one backward pass, in float64: against finite differences, and against ordinary autograd."""

import pytest
import timm
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

import vssm  # noqa: F401
from tests.kernels.test_ops import leaves, scan_inputs, ssd_inputs
from tests.scan_2d import ROUTES, make_2d
from vssm_kernels import (
    Route,
    neighborhood_attention,
    neighborhood_sum,
    neighborhood_weights,
    read_map,
    selective_scan,
    selective_scan_2d,
    ssd,
    write_map,
)
from vssm_kernels.tables import forget_tables


def two_sums(q, k, v, keep):
    weights = neighborhood_weights(q, k, (3, 3), keep=keep)
    return neighborhood_sum(weights, q, k, neighborhood_sum(weights, q, k, v, (3, 3)).sin(), (3, 3))


# (op, tensors by name, other arguments)
CASES = {
    f"scan-{length}-{states}-{backend}": (
        selective_scan,
        scan_inputs(length, states, groups=2, channels=4, absent=absent),
        dict(delta_softplus=not absent, return_last_state=True, backend=backend),
    )
    for length, states, absent, backend in (
        (1, 1, (), "torch"),
        (7, 16, (), "auto"),
        (9, 3, ("D", "z", "delta_bias"), "torch"),
        (5, 2, (), "reference"),
    )
}
CASES |= {
    f"scan_2d-{name}-{'merged' if merge else 'apart'}": (
        selective_scan_2d,
        {
            key: None if x is None else x.double()
            for key, x in make_2d(ROUTES[name], 2, *size, channels=2, softplus=softplus, **form).items()
        },
        dict(routes=ROUTES[name], delta_softplus=softplus, merge=merge, backend=backend),
    )
    for name, size, merge, softplus, backend, form in (
        ("cross", (3, 2), True, True, "auto", dict(states=16)),
        ("cross", (1, 1), False, True, "torch", dict(own_input=True)),
        ("strided", (4, 5), False, False, "torch", dict(states=1)),
        ("joined", (3, 3), False, True, "torch", dict(rank=None)),
        ("joined-first", (3, 2), True, False, "reference", dict(absent=("D", "delta_bias"))),
        ("paths", (3, 4), True, True, "torch", dict(states=1, absent=("C",))),
        ("some-empty", (2, 3), False, True, "torch", {}),
    )
}
CASES |= {
    f"ssd-{length}-{backend}": (
        ssd,
        ssd_inputs(length),
        dict(dt_softplus=softplus, chunk_size=4, backend=backend),
    )
    for length, softplus, backend in ((1, True, "auto"), (7, True, "torch"), (9, False, "reference"))
}
MAP = (2, 3, 4, 2, 2)
MAPS = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SNAKES = (Route(path="snake"), Route(transpose=True, path="snake"))
CASES |= {
    "neighborhood": (
        neighborhood_attention,
        {
            name: torch.randn(*shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            for i, (name, shape) in enumerate(dict(q=MAP, k=MAP, v=MAP, bias=(2, 5, 5)).items())
        },
        dict(kernel_size=(3, 3), dilation=(1, 2)),
    ),
    **{
        f"neighborhood_halves-{keep}": (
            two_sums,
            {
                name: torch.randn(*MAP, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
                for i, name in enumerate(("q", "k", "v"))
            },
            dict(keep=keep),
        )
        for keep in (True, False)
    },
    "read_map": (read_map, dict(x=MAPS), dict(routes=SNAKES)),
    "write_map": (
        write_map,
        dict(y=MAPS.flatten(1, 2).unsqueeze(2).expand(-1, -1, 2, -1)),
        dict(routes=SNAKES, height=3, width=4),
    ),
}
each_case = pytest.mark.parametrize(("op", "inputs", "others"), CASES.values(), ids=CASES)


def of_tensors(op, inputs, others):
    """The op as a function of its tensors alone, and these."""
    names = [name for name, x in inputs.items() if x is not None]
    return (lambda *tensors: op(**dict(zip(names, tensors, strict=True)), **others)), [inputs[name] for name in names]


@each_case
def test_first_and_second_derivatives_by_differences(op, inputs, others):
    """Backward, forward mode, a backward of the backward, and a forward mode of the backward."""
    f, tensors = of_tensors(op, leaves(inputs), others)
    torch.manual_seed(0)
    assert gradcheck(f, tensors, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(f, tensors, fast_mode=True, check_fwd_over_rev=True)


@each_case
def test_transforms_of_torch_func(op, inputs, others):
    """Against what ordinary autograd, one output or one sample at a time, gives for the same."""
    f, tensors = of_tensors(op, inputs, others)
    tensors = [x.contiguous() for x in tensors]
    everything = tuple(range(len(tensors)))

    def scalar(*tensors):
        results = f(*tensors)
        return sum(x.square().sum() for x in (results if isinstance(results, tuple) else (results,)))

    first = tensors[0]

    def of_first(x):
        return scalar(x, *tensors[1:])

    want = torch.autograd.functional.jacobian(scalar, tuple(tensors))
    assert_close(grad(scalar, everything)(*tensors), want)
    assert_close(vjp(scalar, *tensors)[1](torch.ones((), dtype=torch.float64)), want)
    assert_close(jacrev(scalar, everything)(*tensors), want)
    assert_close(jacfwd(scalar, everything)(*tensors), want)

    tangent = torch.randn(first.shape, generator=torch.Generator().manual_seed(1), dtype=first.dtype)
    products = torch.autograd.functional.hvp(of_first, first, tangent)[1]
    assert_close(jvp(grad(of_first), (first,), (tangent,))[1], products)
    assert_close(grad(lambda x: jvp(of_first, (x,), (tangent,))[1])(first), products)

    # three samples, of all inputs and of the first alone
    factors = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    several = [torch.stack([factor * x for factor in factors], -1) for x in tensors]
    samples = list(zip(*(x.unbind(-1) for x in several), strict=True))
    assert_close(vmap(scalar, in_dims=-1)(*several), torch.stack([scalar(*sample) for sample in samples]))
    mapped = vmap(grad(of_first), in_dims=-1, out_dims=-1)(several[0])
    assert_close(mapped, torch.stack([grad(of_first)(sample[0]) for sample in samples], -1))
    assert_close(vmap(of_first, in_dims=-1)(several[0]), torch.stack([of_first(sample[0]) for sample in samples]))
    assert_close(grad(lambda x: vmap(of_first, in_dims=-1)(x).sum())(several[0]), mapped)


@pytest.mark.parametrize("name", ["vmamba_pico", "vssd_pico"])
def test_tangents_and_gradients_of_each_sample_of_a_model(name):
    """The tangent by a difference, of the input and of all parameters; the gradients one sample at a time."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval().double()
    parameters = {key: x.detach() for key, x in model.named_parameters()}
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    def f(parameters, x):
        return functional_call(model, parameters, (x,))

    at = (parameters, images)
    tangents = ({key: 0.1 * torch.randn_like(x) for key, x in parameters.items()}, torch.randn_like(images))

    def moved(by):
        return f({key: x + by * tangents[0][key] for key, x in parameters.items()}, images + by * tangents[1])

    got = jvp(f, at, tangents)[1]
    want = (moved(1e-6) - moved(-1e-6)) / 2e-6
    assert got.abs().max() > 0.01 and torch.allclose(got, want, rtol=1e-6, atol=1e-7)

    def loss(parameters, x):
        return f(parameters, x[None]).square().sum()

    of_each = vmap(grad(loss), (None, 0))(*at)
    for i, image in enumerate(images):
        model.zero_grad()
        model(image[None]).square().sum().backward()
        assert_close({key: x[i] for key, x in of_each.items()}, {k: x.grad for k, x in model.named_parameters()})


def test_a_backward_that_can_be_differentiated_runs_the_same_kernels():
    """Only a second backward pays for the plain form, here in float32 after the compiled backend."""
    inputs = {key: x.float() for key, x in scan_inputs(7, 2).items()}
    first, others = inputs.pop("u").requires_grad_(), inputs
    y = selective_scan(first, **others, delta_softplus=True).square().sum()
    plain = torch.autograd.grad(y, first, retain_graph=True)
    (differentiable,) = torch.autograd.grad(y, first, create_graph=True)
    assert torch.equal(differentiable, *plain)
    got = torch.autograd.grad(differentiable.sum(), first)
    exact = {key: x.double() for key, x in others.items()}
    want = torch.autograd.functional.hvp(
        lambda u: selective_scan(u, **exact, delta_softplus=True).square().sum(),
        first.detach().double(),
        torch.ones(first.shape, dtype=torch.float64),
    )[1]
    torch.testing.assert_close(got[0].double(), want, rtol=1e-4, atol=1e-4)


def test_tables_made_under_a_transform_serve_ordinary_calls():
    forget_tables()
    grad(lambda x: read_map(x, SNAKES).sum())(MAPS)
    assert read_map(MAPS, SNAKES).shape == (2, 12, 2, 2)
    assert jvp(lambda x: read_map(x, SNAKES), (MAPS,), (MAPS,))[1].equal(read_map(MAPS, SNAKES))


def test_bad_input_under_a_transform():
    inputs = scan_inputs(5)
    u, others = inputs.pop("u"), inputs
    for changes, sentence in (
        (dict(delta=others["delta"][:, :, 1:]), r"delta must have shape \(2, 8, 5\)"),
        (dict(backend="cpp"), "backend='cpp' cannot run: .*float64"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=sentence):
            jvp(lambda x, changes=changes: selective_scan(x, **others | changes), (u,), (u,))


def test_what_stays_unsupported_is_said_in_one_sentence():
    inputs = scan_inputs(5)
    u, others = inputs.pop("u"), inputs
    with pytest.raises(RuntimeError, match=r"vssm::selective_scan_backward .*use torch.func.jacrev") as caught:
        torch.autograd.functional.jacobian(lambda x: selective_scan(x, **others), u, vectorize=True)
    assert "\n" not in str(caught.value)


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)

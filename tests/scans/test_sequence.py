"""The mixer of sequences against Mamba's recurrence, written out."""

import pytest
import torch
import torch.nn.functional as F

from vssm.scans import SS1D, SS2D

DIM, L = 6, 9


def build(**options):
    torch.manual_seed(0)
    mixer = SS1D(DIM, d_state=3, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer, torch.randn(2, L, DIM, dtype=torch.float64)


def scan(mixer, x, k):
    """Direction k of a sequence (B, L, D) that is in its order already: convolution, projections, recurrence, skip."""
    channels = slice(k * mixer.d_inner, (k + 1) * mixer.d_inner)
    past = F.pad(x.transpose(1, 2), (mixer.d_conv - 1, 0))
    u = F.silu(F.conv1d(past, mixer.conv.weight[channels], mixer.conv.bias[channels], groups=mixer.d_inner))
    u = u.transpose(1, 2)
    dt, B, C = (u @ mixer.x_proj_weight[k].T).split([mixer.dt_rank, 3, 3], dim=-1)
    step = F.softplus(dt @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k])
    A, h, y = -mixer.A_logs[channels].exp(), torch.zeros(2, mixer.d_inner, 3, dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = torch.exp(step[:, t, :, None] * A) * h + (step[:, t] * u[:, t])[..., None] * B[:, t, None]
        y.append((h * C[:, t, None]).sum(-1) + mixer.Ds[channels] * u[:, t])
    return torch.stack(y, dim=1)


@pytest.mark.parametrize(
    "options", [{}, dict(bidirectional=True), dict(bidirectional=True, halve=True, d_conv=3)], ids=str
)
def test_recurrence(options):
    mixer, x = build(**options)
    tokens, z = mixer.in_proj(x).chunk(2, dim=-1)
    parts = [scan(mixer, tokens, 0)]
    if options:
        parts.append(scan(mixer, tokens.flip(1), 1).flip(1))
    parts = torch.stack(parts, dim=2) * F.silu(z).unsqueeze(2) * (0.5 if "halve" in options else 1)
    torch.testing.assert_close(mixer.branches(x), parts)
    torch.testing.assert_close(mixer(x), mixer.out_proj(parts.sum(2)))
    torch.testing.assert_close(mixer(x.unflatten(1, (3, 3))).flatten(1, 2), mixer(x))


def test_the_frozen_scan_is_what_the_mixer_computes():
    mixer, x = build(bidirectional=True)
    (frozen,) = mixer.linear_scans(x[:1])
    skip = mixer.Ds.unflatten(0, (2, -1)) * frozen.source
    mixed = mixer.mix(mixer.in_proj(x[:1])[..., : mixer.d_inner], merge=False)
    torch.testing.assert_close((frozen.apply(frozen.source) + skip).squeeze(1), mixed)
    assert frozen.routes == ("rows", "rows, backwards")


def test_one_direction_sees_no_later_token():
    mixer, x = build()
    changed = x.clone()
    changed[:, 5:] += 1
    assert torch.equal(mixer(changed)[:, :5], mixer(x)[:, :5]) and not torch.equal(mixer(changed), mixer(x))


@pytest.mark.parametrize("options", [{}, dict(bidirectional=True, halve=True, conv_bias=False)], ids=str)
def test_inference_takes_one_operator_with_the_same_result(options):
    mixer, x = build(**options)
    mixer, x = mixer.float(), x.float()
    want = mixer(x)  # recorded, so by operators of its own
    assert want.grad_fn is not None
    with torch.no_grad(), torch.profiler.profile() as profile:
        got = mixer(x)
    assert "vssm::mamba_inner" in {event.key for event in profile.key_averages()}
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert mixer(x[:0]).shape == (0, L, DIM)
        traced = torch.jit.trace(mixer, x)
    assert "mamba_inner" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), want, rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # transforms need rules, which the one operator has not
        torch.testing.assert_close(torch.func.jvp(mixer, (x,), (x,))[0], want, rtol=1e-5, atol=1e-6)


def test_mixers_without_a_projection_back_end_at_the_gate():
    torch.manual_seed(0)
    for mixer, shape in ((SS1D, (1, 5, 4)), (SS2D, (1, 2, 3, 4))):
        full, bare = mixer(4, ssm_ratio=1.0), mixer(4, ssm_ratio=1.0, out_proj=False)
        bare.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith("out_proj")})
        x = torch.randn(shape)
        torch.testing.assert_close(full.out_proj(bare(x)), full(x))
        with pytest.raises(ValueError, match="ssm_ratio=1"):
            mixer(4, ssm_ratio=2.0, out_proj=False)

"""Single and half precisions against float64, under autocast and with half weights, a small model of each family."""

import pytest
import timm
import torch

import vssm

MODELS = [(name, {}) for name in vssm.list_models() if name.endswith("_pico")]
# Other forms of the scan than the picos have.
MODELS += [("vmamba_pico", o) for o in (dict(ssd=True, d_state=8), dict(scan="cascade"), dict(gate=True, d_state=4))]
# Untrained, it spreads rounding: that of the weights alone to bfloat16 moves its logits by 0.013 of their size.
FARTHER = {"groupmamba_pico": 0.03}


@pytest.mark.parametrize(("name", "options"), MODELS, ids=str)
@torch.no_grad()
def test_precisions_agree(name, options):
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    if name == "a2mamba_pico":
        # Untrained, its gates are near zero and its norms bring them back: rounding of 6e-8 after each layer moves the
        # logits by 1e-5 of their deviation. With weights of the size that trained ones have it does not.
        for key, weight in model.named_parameters():
            if weight.dim() > 1 and not key.endswith("A_logs"):
                weight.normal_(0, weight[0].numel() ** -0.5)
    x = torch.randn(1, 3, 75, 101)
    exact = model.double()(x.double())
    scale = exact.std()

    def error(y):
        return ((y.double() - exact).abs().max() / scale).item()

    def distance(y):
        return ((y.double() - exact).norm() / exact.norm()).item()

    model.float()
    assert error(model(x)) < 1e-5
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):
        with torch.autocast("cpu", dtype=dtype):
            results = [model(x)]
        results.append(model.to(dtype)(x.to(dtype)))
        assert max(map(error, results)) < tolerance
        assert max(map(distance, results)) < FARTHER.get(name, 0.02)
        model.float()

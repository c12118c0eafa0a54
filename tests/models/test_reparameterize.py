"""timm's `reparameterize_model` calls `fuse` and `reparameterize` of whatever has one."""

import pytest
import timm
import torch
from timm.utils import reparameterize_model

import vssm


@pytest.mark.parametrize("name", vssm.list_models("*_pico"))
@torch.no_grad()
def test_outputs_stay(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(1, 3, 32, 32)
    want = model(x)
    assert torch.allclose(reparameterize_model(model)(x), want, rtol=1e-4, atol=1e-4 * want.std().item())

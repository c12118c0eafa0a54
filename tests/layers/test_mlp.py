"""Channel mixers."""

import pytest
import torch
import torch.nn.functional as F

from vssm.layers import DepthwiseMlp


@pytest.mark.parametrize("size", [(5, 4), (1, 1)])
def test_convolution_stands_before_the_activation(size):
    torch.manual_seed(0)
    mlp, x = DepthwiseMlp(6, 12).double(), torch.randn(2, *size, 6, dtype=torch.float64)
    y = mlp.fc1(x).permute(0, 3, 1, 2)
    y = F.gelu(F.conv2d(y, mlp.dwconv.weight, mlp.dwconv.bias, padding=1, groups=12))
    assert torch.allclose(mlp(x), mlp.fc2(y.permute(0, 2, 3, 1)), rtol=1e-12)

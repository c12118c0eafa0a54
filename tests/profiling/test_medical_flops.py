"""The published costs of the medical networks, which other counters than fvcore counted; none of them sees a scan.

- MSVM-UNet: calflops in training mode. Two for a multiply-add, one for a bias of a convolution, five for an element of
  a LayerNorm or BatchNorm, one for an element of an activation.
- VM-UNet: thop. One for a multiply-add, four for an element of a LayerNorm; the scan's projections are einsums, which
  it does not see either.
"""

from collections import Counter

import pytest
import torch
from torch import nn

from vssm.medical import mhs_unet_3head, mhs_unet_4head, msvm_unet_tiny, vm_unet
from vssm.profiling import paper_flops
from vssm.scans import SS2D


@torch.no_grad()
def count(net: nn.Module, size: int) -> Counter:
    """Multiply-adds (with the scan's own apart), and elements of what else the counters count, in G."""
    counts: Counter = Counter()
    names = {module: name for name, module in net.named_modules()}

    def add(module, inputs, output):
        x = inputs[0]
        if isinstance(module, nn.Linear):
            counts["projection" if names[module].endswith("x_proj") else "product"] += x.numel() * module.out_features
        elif isinstance(module, nn.Conv2d):
            counts["product"] += output.numel() * module.weight[0].numel()
            counts["bias"] += output.numel() * (module.bias is not None)
        elif isinstance(module, SS2D):
            counts["projection"] += x[..., 0].numel() * module.dt_projs_weight.numel()
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            counts["norm"] += x.numel()
        elif isinstance(module, nn.ReLU | nn.GELU | nn.SiLU):
            counts["activation"] += x.numel()

    for module in names:
        module.register_forward_hook(add)
    net.eval()(torch.zeros(1, 3, size, size))
    return Counter({name: n / 1e9 for name, n in counts.items()})


def test_msvm_unet():
    c = count(msvm_unet_tiny(), 224)
    gflops = 2 * (c["product"] + c["projection"]) + c["bias"] + 5 * c["norm"] + c["activation"]
    assert f"{gflops:.2f}" == "15.53"


def test_vm_unet():
    c = count(vm_unet(), 256)
    assert f"{c['product'] + 4 * c['norm']:.2f}" == "4.11"
    assert f"{c['product'] + 5 * c['norm']:.2f}" == "4.12"  # as fvcore counts the norms


@pytest.mark.parametrize(
    ("network", "products", "scan"),
    # Measured on the official networks: multiply-adds of all products, and the scan by the usual formula.
    [(vm_unet, 5.29, 2.96), (mhs_unet_4head, 3.32, 1.48), (mhs_unet_3head, 3.33, 1.48)],
)
def test_whole_count(network, products, scan):
    """`paper_flops` sees the scan and its projections."""
    products_and_scan = paper_flops(network(), (3, 256, 256), uncounted=("aten::layer_norm", "aten::mean")) / 1e9
    assert products_and_scan == pytest.approx(products + scan, abs=0.01)  # two rounded figures

"""Nothing in a model reads from a GPU or copies to it: that makes the GPU wait, and breaks CUDA graphs."""

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vssm
from vssm.scans import ATROUS, CROSS, DIAGONAL, MULTISCALE
from vssm_kernels import chunked, encode_routes
from vssm_kernels.scan_2d import scan_2d_bwd, scan_2d_fwd

PICOS = [name for name in vssm.list_models() if name.endswith("_pico")]


class OnOneDevice(TorchDispatchMode):
    """Refuses operators that see tensors of another device: copies from the host make a GPU wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        places = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        assert places <= {"cuda"}, f"{func} with tensors on {places}"
        return out


@pytest.mark.parametrize("name", PICOS)
def test_models_neither_read_from_nor_wait_for_the_gpu(name):
    """With tensors that have no values, on a GPU that need not exist: to read a value is an error."""
    model = timm.create_model(name, num_classes=1000, device="meta").eval()
    with FakeTensorMode(), torch.no_grad():
        tensors = dict([*model.named_parameters(), *model.named_buffers()])
        tensors = {n: torch.empty(t.shape, dtype=t.dtype, device="cuda") for n, t in tensors.items()}
        x = torch.empty(2, 3, 96, 128, device="cuda")
        with OnOneDevice():
            assert torch.func.functional_call(model, tensors, x).shape == (2, 1000)


@pytest.mark.parametrize("routes", [CROSS, ATROUS, MULTISCALE, DIAGONAL], ids=["cross", "atrous", "multi", "diagonal"])
def test_the_composed_scan_neither_reads_from_nor_waits_for_the_gpu(routes):
    """As above, inside the op, forward and backward, once the permutations of its routes are kept."""
    code, count, batch, height, width, channels, states, rank = encode_routes(routes), len(routes), 2, 5, 6, 4, 2, 3

    with FakeTensorMode():

        def empty(*shape):
            return torch.empty(shape, device="cuda")

        on_map = (batch, height, width)
        inputs = [empty(*on_map, channels), empty(*on_map, count, rank), empty(count, channels, states)]
        inputs += [empty(*on_map, count, states), empty(*on_map, count, states)]
        inputs += [empty(count, channels), empty(count, channels), empty(count, channels, rank)]

        def both():
            y = scan_2d_fwd(chunked.selective_scan_fwd, *inputs, code, True, True, torch.float32)
            return scan_2d_bwd(chunked.selective_scan_bwd, torch.empty_like(y), *inputs, code, True, True)

        both()
        with OnOneDevice():
            grads = both()
    assert [g.shape for g in grads] == [x.shape for x in inputs]

import os

# Before torch is imported: on shared cores, OpenMP threads that wait busily slow small operations down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Workers of pytest-xdist share the cores, one each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

# Triton reads this when a kernel is decorated, so it has to be there before any kernel module is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def triton_device():
    """Where Triton kernels run here: a GPU, or the interpreter on the CPU."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return torch.device("cuda")
    _scan_by_slices_in_interpreter()
    return torch.device("cpu")


def _scan_by_slices_in_interpreter():
    """Make the interpreter's associative scan combine whole slices; its own goes element by element, for minutes."""
    import numpy as np
    from triton.runtime import interpreter

    def generic_scan(self, inputs):
        arrays = [np.moveaxis(x.handle.data, self.axis, 0) for x in inputs]
        outputs = [np.empty_like(array) for array in arrays]
        for i in range(len(arrays[0])):
            element = tuple(self.to_tensor(array[i], x.dtype) for array, x in zip(arrays, inputs, strict=True))
            if i == 0:
                total = element
            else:
                total = self.combine_fn.fn(*total, *element)
                total = total if isinstance(total, tuple) else (total,)
            for output, value in zip(outputs, total, strict=True):
                output[i] = value.handle.data
        return [
            self.to_tensor(np.ascontiguousarray(np.moveaxis(output, 0, self.axis)), x.dtype)
            for output, x in zip(outputs, inputs, strict=True)
        ]

    interpreter.ScanOps.element_scan = interpreter.ScanOps.generic_scan  # kept, for the test that compares the two
    interpreter.ScanOps.generic_scan = generic_scan

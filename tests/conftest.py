import functools
import gc
import json
import os
from datetime import date
from pathlib import Path

# Garbage is looked for less often: going through the many objects took a tenth of the time of all tests.
gc.set_threshold(5000, 20, 50)
# Before torch is imported: on shared cores, OpenMP threads that wait busily slow small operations down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Workers of pytest-xdist share the cores, and tensors as small as the tests' gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402

from tests import parity, quick  # noqa: E402

# Triton reads this when a kernel is decorated, so it has to be there before any kernel module is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption("--record-parity", metavar="FILE", help="write the deviations from the official models here")


# Begun first: workers take whole files, and one that is begun late keeps the others waiting at the end.
LONGEST = (
    *("tests/test_zoo.py", "tests/models/test_registry.py", "tests/models/test_compile.py", "tests/test_export.py"),
    *("tests/mm/test_mini_runs.py", "tests/mm/test_configs.py", "tests/models/test_compile_backward.py"),
    *("tests/test_site.py", "tests/engine/test_interruption.py", "tests/test_docs.py"),
)


def pytest_collection_modifyitems(items):
    """The longest files first, and tests of one official record after each other: drawing its weights takes longest."""
    first = {}

    def place(item):
        file, key = item.location[0], getattr(item, "callspec", None) and item.callspec.params.get("key")
        rank = LONGEST.index(file) if file in LONGEST else len(LONGEST)
        return rank, first.setdefault(file, len(first)), first.setdefault((file, str(key)), len(first))

    items.sort(key=place)


def pytest_collection_finish():
    """What is imported by now stays: it need not be gone through for garbage, as mmengine has it for each data set."""
    gc.freeze()


def pytest_runtest_setup(item):
    """Assigns what is measured from now on to the official model whose record the test takes, if any."""
    key = item.callspec.params.get("key") if hasattr(item, "callspec") else None
    parity.measure(key)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, in the process that its workers report to
def pytest_testnodedown(node):
    parity.merge(parity.deviations, getattr(node, "workeroutput", {}).get("parity", {}))


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput["parity"] = parity.deviations
    elif file := session.config.getoption("--record-parity"):
        if exitstatus:
            raise pytest.UsageError(f"{file} is not written, because a test failed")
        from vssm.profiling import environment

        about = {k: v for k, v in environment(torch.device("cpu")).items() if k in ("torch", "cpu", "compiled scan")}
        record = {"environment": {"date": date.today().isoformat(), **about}, "deviations": parity.deviations}
        Path(file).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


@pytest.fixture(scope="session", autouse=True)
def quick_mmengine():
    with pytest.MonkeyPatch.context() as patch:
        quick.patch_mmengine(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def draw_nothing_on_the_meta_device():
    """There are no values there, but to find the shape of `clamp_` takes longer than the rest of a model."""
    from timm.layers import weight_init

    draw = weight_init._trunc_normal_

    def unless_meta(tensor, *args, **kwargs):
        return tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_init, "_trunc_normal_", unless_meta)
        yield


@pytest.fixture(scope="session")
def triton_device():
    """Where Triton kernels run here: a GPU, or the interpreter on the CPU."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return torch.device("cuda")
    _scan_by_slices_in_interpreter()
    _patch_language_once_in_interpreter()
    return torch.device("cpu")


def _patch_language_once_in_interpreter():
    """The interpreter patches the language for a kernel, and does so again for each call of a function in it."""
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    @functools.cache
    def languages(fn):
        return [value for value in fn.__globals__.values() if value is language or value is language.core]

    def patch_once(fn):
        return patch(fn) if any(language.core.is_builtin(module.load) for module in languages(fn)) else None

    interpreter._patch_lang = patch_once


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


@pytest.fixture
def no_scope(monkeypatch):
    """As in a new process: mmengine keeps the scope of names that an earlier run has set."""
    scope = pytest.importorskip("mmengine.registry").DefaultScope
    monkeypatch.setattr(scope, "_instance_dict", type(scope._instance_dict)())

"""The choice of a form by time: what is timed, what is kept, what takes the default. No GPU and no clock are needed."""

import math
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

pytest.importorskip("triton")
from vssm_kernels.triton import clock, map_form, tune  # noqa: E402

FORMS = ("default", "wide", "paired")
MILLISECONDS = {"default": 3.0, "wide": 2.0, "paired": 4.0}


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """The forms timed, in order; times are made up, files lie in a directory of the test's own."""
    timed = []

    def milliseconds(call, device):
        timed.append(call())
        return MILLISECONDS[timed[-1]]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tune, "_chosen", {})
    monkeypatch.setattr(tune, "forms_are_timed", lambda device: True)
    monkeypatch.setattr(tune, "_device_name", lambda x: "some GPU")
    monkeypatch.setattr(tune, "device_milliseconds", milliseconds)
    return timed


def choose(kind=("forward", torch.float32), code="1", forms=FORMS, final=True):
    kernels = [SimpleNamespace(cache_key=code)]
    form, last_word = tune.choose_form(kernels, kind, forms, lambda form: form, torch.empty(1))
    assert last_word == final
    return form


def test_the_fastest_is_taken_and_timed_once(timed):
    assert choose() == choose() == FORMS[1]
    assert timed == list(FORMS)


def test_noise_does_not_choose(timed, monkeypatch):
    monkeypatch.setitem(MILLISECONDS, "wide", 2.95)
    assert choose() == FORMS[0]


def test_times_are_kept_on_disk_for_the_next_process(timed, tmp_path):
    choose()
    tune._chosen.clear()
    assert choose() == FORMS[1] and len(timed) == 3
    (file,) = tmp_path.rglob("*.json")
    for damaged in ("", "[]", '{"milliseconds": [1.0]}', '{"milliseconds": [1, "2", null]}'):
        file.write_text(damaged)
        tune._chosen.clear()
        timed.clear()
        assert choose() == FORMS[1] and len(timed) == 3


def test_of_two_processes_that_time_at_once_the_second_takes_the_times_of_the_first(timed, monkeypatch):
    def timed_meanwhile(call, device):
        with monkeypatch.context() as other_process:
            other_process.setattr(tune, "device_milliseconds", lambda call, device: MILLISECONDS[call()])
            other_process.setattr(tune, "_chosen", {})
            assert choose() == FORMS[1]
        return {"default": 3.0, "wide": 4.0, "paired": 2.0}[call()]

    monkeypatch.setattr(tune, "device_milliseconds", timed_meanwhile)
    assert choose() == FORMS[1]


@pytest.mark.parametrize(
    "other",
    [dict(kind=("forward", torch.bfloat16)), dict(code="2"), dict(forms=FORMS[:2])],
    ids=["kind", "code", "forms"],
)
def test_another_kind_code_or_choice_is_timed_anew(timed, other):
    choose()
    tune._chosen.clear()
    choose(**other)
    assert len(timed) == 3 + len(other.get("forms", FORMS))


def test_another_device_is_timed_anew(timed, monkeypatch):
    choose()
    monkeypatch.setattr(tune, "_device_name", lambda x: "another GPU")
    tune._chosen.clear()
    choose()
    assert len(timed) == 6


def test_a_single_form_is_not_timed(timed):
    assert choose(forms=FORMS[2:]) == "paired" and timed == []


def test_nothing_is_kept_where_the_default_fails(timed, monkeypatch, tmp_path):
    def out_of_memory(call, device):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tune, "device_milliseconds", out_of_memory)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # for a lack of memory there is no other word
        assert choose() == FORMS[0] and not list(tmp_path.rglob("*.json"))


def test_a_form_that_fails_is_not_taken_and_named(timed, monkeypatch):
    def milliseconds(call, device):
        return 1 / (call() != "wide")

    monkeypatch.setattr(tune, "device_milliseconds", milliseconds)
    with pytest.warns(UserWarning, match="a form of the Triton scan failed.*ZeroDivisionError"):
        assert choose() == FORMS[0]


def test_a_graph_takes_what_was_timed_before(timed, monkeypatch):
    capturing = [True]
    monkeypatch.setattr(tune, "is_capturing", lambda device: capturing[0])
    assert choose(final=False) == FORMS[0] and timed == []
    capturing[0] = False
    assert choose() == FORMS[1]
    capturing[0] = True
    assert choose() == FORMS[1], "from this process"
    tune._chosen.clear()
    assert choose() == FORMS[1] and len(timed) == 3, "from another one"


def test_timing_does_not_use_the_memory_of_the_callers_thread(timed, monkeypatch):
    threads = []
    monkeypatch.setattr(tune, "device_milliseconds", lambda call, device: threads.append(threading.get_ident()) or 1.0)
    choose()
    assert len(threads) == 3 and threading.get_ident() not in threads


def test_ranks_choose_alike(timed, monkeypatch, tmp_path):
    """Each with a cache of its own, and a clock that finds another form the fastest."""
    store = distributed.HashStore()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: store)
    for rank, fastest in enumerate(("paired", "wide", "default", "default")):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / str(min(rank, 2))))  # the last shares that of another
        monkeypatch.setattr(tune, "_chosen", {})
        monkeypatch.setattr(tune, "device_milliseconds", lambda call, device, f=fastest: 1.0 if call() == f else 2.0)
        assert choose() == "paired"
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    for rank in range(3):
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / str(rank)))
        tune._chosen.clear()
        assert choose() == "paired", "the next run on this machine"


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_where_nothing_is_timed(monkeypatch, device):
    device = torch.device(device, 0)
    monkeypatch.delenv("VSSM_TRITON_AUTOTUNE", raising=False)
    assert tune.forms_are_timed(device)
    assert not tune.forms_are_timed(torch.device("cpu"))  # the interpreter
    monkeypatch.setenv("VSSM_TRITON_AUTOTUNE", "0")
    assert not tune.forms_are_timed(device)
    monkeypatch.delenv("VSSM_TRITON_AUTOTUNE")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not tune.forms_are_timed(device)


@pytest.mark.parametrize("low_rank", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_every_form_can_be_compiled(backward, low_rank):
    """A matrix product takes at least 16 rows and columns."""
    least = set()
    for channels in (8, 16, 32, 96):
        for states in (1, 2, 4, 8, 16, 64):
            forms = map_form.map_forms(channels, states, backward, low_rank, False, True)
            least |= {form.blocks.block_d for form in forms}
            assert len(set(forms)) == len(forms)
    assert min(least) == (16 if low_rank else 8)


class SimulatedGPU:
    """A device that works on what the host asked for, in order, while the host goes on; both have their own clock."""

    def __init__(self, host, device, cycles):
        self.host_call, self.device_call, self.cycles = host, device, cycles
        self.now = self.done = 0.0

    def perf_counter(self):
        return self.now

    def call(self):
        self.now += self.host_call
        self.done = max(self.done, self.now) + self.device_call

    def _sleep(self, cycles):
        self.done = max(self.done, self.now) + cycles / self.cycles

    def synchronize(self, device):
        self.now = max(self.now, self.done)

    def Event(self, enable_timing):
        gpu = self

        class Event:
            def record(self):
                self.at = gpu.done = max(gpu.done, gpu.now)

            def query(self):
                return self.at <= gpu.now

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        return Event()


@pytest.mark.parametrize("host", [120e-6, 5e-6])
@pytest.mark.parametrize("device", [70e-6, 3e-3])
@pytest.mark.parametrize("cycles", [1.7e9, 20e9])
def test_what_is_measured_is_the_device_and_not_the_host(monkeypatch, host, device, cycles):
    gpu = SimulatedGPU(host, device, cycles)
    monkeypatch.setattr(clock, "time", gpu)
    monkeypatch.setattr(torch, "cuda", gpu)
    measured = clock.device_milliseconds(gpu.call, torch.device("cuda"))
    assert math.isclose(measured, 1e3 * device, rel_tol=1e-6)

"""The choice of a form by time: what is timed, what is kept, what takes the default. No GPU and no clock are needed."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from vssm_kernels.triton import tune  # noqa: E402

FORMS = ("default", "wide", "paired")
MILLISECONDS = [3.0, 2.0, 4.0]


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """The forms timed, in order; times are made up, files lie in a directory of the test's own."""
    timed = []

    def milliseconds(call):
        timed.append(call())
        return MILLISECONDS[FORMS.index(timed[-1])]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tune, "_chosen", {})
    monkeypatch.setattr(tune, "_may_time", lambda x: True)
    monkeypatch.setattr(tune, "_device_name", lambda x: "some GPU")
    monkeypatch.setattr(tune, "_milliseconds", milliseconds)
    return timed


def choose(kind=("forward", torch.float32), code="1", forms=FORMS):
    kernels = [SimpleNamespace(cache_key=code)]
    return tune.choose_form(kernels, kind, forms, lambda form: form, torch.empty(1))


def test_the_fastest_is_taken_and_timed_once(timed):
    assert choose() == choose() == FORMS[1]
    assert timed == list(FORMS)


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
    monkeypatch.setattr(tune, "_milliseconds", lambda call: float("inf"))
    assert choose() == FORMS[0] and not list(tmp_path.rglob("*.json"))


def test_a_form_that_fails_is_not_taken(monkeypatch):
    assert tune._milliseconds(lambda: 1 / 0) == float("inf")


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_where_nothing_is_timed(monkeypatch, device):
    x = SimpleNamespace(device=torch.device(device, 0))
    monkeypatch.delenv("VSSM_TRITON_AUTOTUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tune._may_time(x)
    assert not tune._may_time(torch.empty(1))  # the interpreter
    monkeypatch.setenv("VSSM_TRITON_AUTOTUNE", "0")
    assert not tune._may_time(x)
    monkeypatch.delenv("VSSM_TRITON_AUTOTUNE")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not tune._may_time(x)


def test_nothing_is_timed_while_a_graph_is_captured(monkeypatch):
    monkeypatch.delenv("VSSM_TRITON_AUTOTUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not tune._may_time(SimpleNamespace(device=torch.device("cuda", 0)))

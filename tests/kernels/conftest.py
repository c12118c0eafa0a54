"""Fixtures of several files of this folder."""

import pytest

from vssm_kernels import cpu


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def variant(request):
    if not cpu.set_variant(request.param):
        pytest.skip(f"this processor or build has no {request.param}")
    yield request.param
    cpu.set_variant()

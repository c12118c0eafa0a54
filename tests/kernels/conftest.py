"""Fixtures of several files of this folder."""

import pytest

from vssm_kernels import cpu_library


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def variant(request):
    if not cpu_library.set_variant(request.param):
        pytest.skip(f"this processor or build has no {request.param}")
    yield request.param
    cpu_library.set_variant()

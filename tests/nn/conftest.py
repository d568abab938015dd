# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

import genimg_fast
from genimg_fast.nn import replay
from genimg_fast.ops import _speed


@pytest.fixture(params=["native", "auto"])
def backend(request):
    """On the kernels, and as users have it: then PyTorch serves models as small as these."""
    with genimg_fast.use_backend(request.param):
        yield request.param


@pytest.fixture
def not_on_avx2(monkeypatch):
    """PyTorch serves what it serves on AVX-512, which is more, whatever this machine has."""
    monkeypatch.setattr(_speed, "_on_avx2", lambda: False)


@pytest.fixture
def recorded_at_once(monkeypatch):
    """The first pass of all, instead of the second with the same weights."""
    monkeypatch.setattr(replay, "_have_settled", lambda *_: True)

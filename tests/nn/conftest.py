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
def small_layers_left(monkeypatch):
    """PyTorch serves layers of what the kernels were not made for, small ones too, whatever this machine has."""
    monkeypatch.setattr(_speed, "_on_avx2", lambda: False)
    monkeypatch.setattr(_speed, "_is_little_work", lambda *_: False)


@pytest.fixture
def recorded_at_once(monkeypatch):
    """The first pass of all, instead of the second with the same weights."""
    monkeypatch.setattr(replay, "_have_settled", lambda *_: True)

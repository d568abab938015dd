# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

import genimg_fast


@pytest.fixture(params=["native", "auto"])
def backend(request):
    """On the kernels, and as users have it: then PyTorch serves models as small as these."""
    with genimg_fast.use_backend(request.param):
        yield request.param

# SPDX-License-Identifier: MIT
"""How the tests of this folder run: as they are, or as test_sanitizers.py or tests/ptx_on_cpu/test_kernels.py runs them."""

from __future__ import annotations

import os

import pytest

SANITIZE = os.environ.get("GENIMG_FAST_CUDA_ON_CPU_SANITIZE") == "1"
PTX = os.environ.get("GENIMG_FAST_PTX_ON_CPU")
"""The architecture whose PTX runs instead of the C++."""

# The sanitizers look at addresses, which do not depend on the order of threads, and the interpreter finds races in any.
ONE_SCHEDULE = SANITIZE or (PTX and os.environ.get("GENIMG_FAST_PTX_ON_CPU_SCHEDULES") != "all")
SCHEDULES = ["random"] if ONE_SCHEDULE else ["forward", "reverse", "random"]

shows_as_values = pytest.mark.skipif(PTX is not None, reason="an error there: tests/ptx_on_cpu/test_controls.py")
"""Of a test whose kernel has a bug that makes it compute NaN."""

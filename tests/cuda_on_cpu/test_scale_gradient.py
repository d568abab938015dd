# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("schedule")


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 33, 9001])
def test_in_place(kernels, memory, size, upstream, misaligned):
    values = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    gradient = memory.output(size, "float32", misaligned)
    gradient[...] = values
    kernels.scale_gradient(gradient, memory.input(np.array([upstream]), "float32"), size)
    np.testing.assert_array_equal(gradient, values * np.float32(upstream))

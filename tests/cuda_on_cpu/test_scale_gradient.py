# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import decode, encode

pytestmark = pytest.mark.usefixtures("schedule")


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("upstream", [1.0, -2.5, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 33, 9001])
@pytest.mark.parametrize(("dtype", "of_upstream"), [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16",) * 2])
def test_in_place(kernels, memory, dtype, of_upstream, size, upstream, misaligned):
    gradient = memory.output(size, dtype, misaligned)
    gradient[...] = encode(np.random.default_rng(1).standard_normal(size), dtype)
    expected = encode(decode(gradient, dtype).astype(np.float32) * np.float32(upstream), dtype)
    kernels.scale_gradient(dtype, gradient, memory.input(np.array([upstream]), of_upstream), size)
    np.testing.assert_array_equal(decode(gradient, dtype), decode(expected, dtype))

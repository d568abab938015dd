# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, GRADIENT_DTYPE, LOSS_DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

# Around the packs (4 float32 or 8 half elements), a warp, and more than one block of packs.
SIZES = (0, 1, 3, 4, 5, 8, 9, 33, 2053)


def random(size, seed):
    return np.random.default_rng(seed).uniform(0.01, 0.99, size)


def exact_loss_and_gradient(x, t):
    with np.errstate(divide="ignore"):
        loss = (t - 1) * np.maximum(np.log1p(-x), -100) - t * np.maximum(np.log(x), -100)
    return loss, (x - t) / np.maximum((1 - x) * x, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("misaligned", [0, 1])
def test_elementwise(kernels, memory, misaligned, weighted, dtype):
    for size in SIZES:
        x, t, w = (memory.input(random(size, seed), dtype, misaligned) for seed in (1, 2, 3))
        loss, grad = memory.output(size, dtype, misaligned), memory.output(size, GRADIENT_DTYPE[dtype])
        partial = memory.output(kernels.bce_partials(size), np.float32)
        kernels.bce_loss(dtype, dtype, dtype, x, t, w if weighted else None, loss, grad, size, partial, 1.0, None)
        weight = decode(w, dtype) if weighted else 1
        exact, exact_grad = exact_loss_and_gradient(decode(x, dtype), decode(t, dtype))
        assert_accurate(loss, weight * exact, dtype, f"size {size}")
        assert_accurate(grad, weight * exact_grad, GRADIENT_DTYPE[dtype], f"size {size}")


@pytest.mark.parametrize(("dtype", "of_target", "of_loss"), LOSS_DTYPES)
@pytest.mark.parametrize("with_grad", [False, True])
def test_sum(kernels, memory, with_grad, dtype, of_target, of_loss):
    for size in SIZES:
        x, t = memory.input(random(size, 1), dtype), memory.input(random(size, 2), of_target)
        grad, out = memory.output(size, GRADIENT_DTYPE[dtype]), memory.output(1, of_loss)
        partial = memory.output(kernels.bce_partials(size), np.float32)
        kernels.bce_loss(
            *(dtype, of_target, of_loss, x, t, None, None, grad if with_grad else None, size, partial, 0.37, out)
        )
        exact, exact_grad = exact_loss_and_gradient(decode(x, dtype), decode(t, of_target))
        assert_accurate(out, np.array([0.37 * exact.sum()]), of_loss, f"size {size}")
        if with_grad:
            assert_accurate(grad, 0.37 * exact_grad, GRADIENT_DTYPE[dtype], f"size {size}")


def test_ends_of_the_interval_and_what_lies_outside(kernels, memory):
    values = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [-0.1, 0], [1.1, 1], [np.nan, 0], [0.5, -0.1], [0.5, np.nan]])
    x, t = memory.input(values[:, 0], "float32"), memory.input(values[:, 1], "float32")
    loss, grad = memory.output(9, "float32"), memory.output(9, "float32")
    partial = memory.output(kernels.bce_partials(9), np.float32)
    kernels.bce_loss(*("float32",) * 3, x, t, None, loss, grad, 9, partial, 1.0, None)
    np.testing.assert_array_equal(loss, [0, 100, 100, 0] + [np.nan] * 5)
    np.testing.assert_allclose(grad[:4], [0, -1e12, 1e12, 0], rtol=1e-6)

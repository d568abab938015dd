# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, GRADIENT_DTYPE, LOSS_DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

SIZES = (0, 1, 3, 4, 5, 8, 9, 33, 2053)


def random(size, seed, scale=1.0):
    return scale * np.random.default_rng(seed).uniform(-1, 1, size)


def exact_loss_and_gradient(x, t, p):
    log_sigmoid = np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))
    log_weight = 1 + (p - 1) * t
    return (1 - t) * x - log_weight * log_sigmoid, log_weight * np.exp(log_sigmoid) - p * t


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("misaligned", [0, 1])
def test_elementwise(kernels, memory, misaligned, weighted, dtype):
    for size in SIZES:
        x = memory.input(random(size, 1, scale=8), dtype, misaligned)
        t, w, p = (memory.input(0.5 + 0.5 * random(size, seed), dtype, misaligned) for seed in (2, 3, 4))
        loss, grad = memory.output(size, dtype, misaligned), memory.output(size, GRADIENT_DTYPE[dtype])
        partial = memory.output(kernels.bce_with_logits_partials(size), np.float32)
        weights = (w, p) if weighted else (None, None)
        kernels.bce_with_logits_loss(*(dtype,) * 3, x, t, *weights, loss, grad, size, partial, 1.0, None)
        weight, pos_weight = (decode(v, dtype) for v in (w, p)) if weighted else (1.0, 1.0)
        exact, exact_grad = exact_loss_and_gradient(decode(x, dtype), decode(t, dtype), pos_weight)
        assert_accurate(loss, weight * exact, dtype, f"size {size}")
        assert_accurate(grad, weight * exact_grad, GRADIENT_DTYPE[dtype], f"size {size}")


@pytest.mark.parametrize(("dtype", "of_target", "of_loss"), LOSS_DTYPES)
@pytest.mark.parametrize("with_grad", [False, True])
def test_sum(kernels, memory, with_grad, dtype, of_target, of_loss):
    for size in SIZES:
        x, t = memory.input(random(size, 1, scale=8), dtype), memory.input(0.5 + 0.5 * random(size, 2), of_target)
        grad, out = memory.output(size, GRADIENT_DTYPE[dtype]), memory.output(1, of_loss)
        partial = memory.output(kernels.bce_with_logits_partials(size), np.float32)
        kernels.bce_with_logits_loss(
            *(dtype, of_target, of_loss, x, t, None, None, None),
            *(grad if with_grad else None, size, partial, 0.37, out),
        )
        exact, exact_grad = exact_loss_and_gradient(decode(x, dtype), decode(t, of_target), 1.0)
        assert_accurate(out, np.array([0.37 * exact.sum()]), of_loss, f"size {size}")
        if with_grad:
            assert_accurate(grad, 0.37 * exact_grad, GRADIENT_DTYPE[dtype], f"size {size}")


def test_small_losses_keep_their_digits(kernels, memory):
    """Of confident, correct logits, whose loss is exp(-|x|): and in between, where a polynomial stands for log1p."""
    x = memory.input(np.concatenate([np.linspace(0, 30, 4001), 2.0 ** np.arange(-30.0, 6.0)]), "float32")
    t, loss = memory.input(np.ones(x.size), "float32"), memory.output(x.size, "float32")
    partial = memory.output(kernels.bce_with_logits_partials(x.size), np.float32)
    kernels.bce_with_logits_loss(*("float32",) * 3, x, t, None, None, loss, None, x.size, partial, 1.0, None)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-x.astype(np.float64))), rtol=3e-7)


def test_nan_and_inf_travel(kernels, memory):
    inf, nan = np.inf, np.nan
    x, t = memory.input(np.array([inf, inf, -inf, nan, 1e38]), "float32"), memory.input([0.0, 1, 0, 0, 1], np.float32)
    loss, grad = memory.output(5, "float32"), memory.output(5, "float32")
    partial = memory.output(kernels.bce_with_logits_partials(5), np.float32)
    kernels.bce_with_logits_loss(*("float32",) * 3, x, t, None, None, loss, grad, 5, partial, 1.0, None)
    np.testing.assert_array_equal(loss, [inf, nan, nan, nan, 0])  # what F.binary_cross_entropy_with_logits gives
    np.testing.assert_array_equal(grad, [1, 0, 0, nan, 0])

# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, GRADIENT_DTYPE, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")


def random(size, seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(size)


def cases(memory, dtype):
    """(description, size, misalignment, mu, logvar, and the two in float64)."""
    # Around the packs (4 float32 or 8 half elements), a warp, and more than one block of packs.
    for size in (0, 1, 3, 4, 5, 7, 8, 9, 17, 33, 2053, 5000):
        for misaligned in (0, 1):
            mu = memory.input(random(size, 1), dtype, misaligned)
            logvar = memory.input(random(size, 2, scale=2), dtype, misaligned)
            what = f"size {size}, misaligned by {misaligned} elements"
            yield what, size, misaligned, mu, logvar, decode(mu, dtype), decode(logvar, dtype)


def run(kernels, memory, dtype, mu, logvar, *, loss=None, gradients=(None, None), grad_scale=1.0, scale=1.0, sum=None):
    partial = memory.output(kernels.gaussian_kl_partials(mu.size), np.float32)
    kernels.gaussian_kl(dtype, mu, logvar, loss, *gradients, grad_scale, mu.size, partial, scale, sum)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_float64(kernels, memory, dtype):
    for what, size, misaligned, mu, logvar, exact_mu, exact_logvar in cases(memory, dtype):
        loss, total = memory.output(size, dtype, misaligned), memory.output(1, dtype)
        grad_mu, grad_logvar = (memory.output(size, GRADIENT_DTYPE[dtype], misaligned) for _ in range(2))
        run(
            kernels, memory, dtype, mu, logvar, loss=loss, gradients=(grad_mu, grad_logvar), grad_scale=0.7,
            scale=0.37, sum=total,
        )  # fmt: skip
        exact = 0.5 * (exact_mu**2 + np.exp(exact_logvar) - 1 - exact_logvar)
        assert_accurate(loss, exact, dtype, what)
        assert_accurate(total, np.array([0.37 * exact.sum()]), dtype, what)
        assert_accurate(grad_mu, 0.7 * exact_mu, GRADIENT_DTYPE[dtype], what)
        assert_accurate(grad_logvar, 0.35 * (np.exp(exact_logvar) - 1), GRADIENT_DTYPE[dtype], what)


def test_only_what_is_asked_for(kernels, memory):
    mu, logvar = memory.input(random(64, 1), "float32"), memory.input(random(64, 2), "float32")
    total = memory.output(1, "float32")
    run(kernels, memory, "float32", mu, logvar, sum=total)
    assert np.isfinite(total).all()
    loss = memory.output(64, "float32")
    run(kernels, memory, "float32", mu, logvar, loss=loss)
    assert_accurate(total, loss.astype(np.float64).sum(keepdims=True), "float32")


@pytest.mark.parametrize("which", range(5))
def test_one_misaligned_array_is_enough(kernels, memory, which):
    """The packed path needs all arrays aligned.  Only the sanitizer sees a misaligned access on the host."""
    offset = [int(which == i) for i in range(5)]
    mu, logvar = memory.input(random(64, 1), "float32", offset[0]), memory.input(random(64, 2), "float32", offset[1])
    out = [memory.output(64, "float32", misaligned) for misaligned in offset[2:]]
    run(kernels, memory, "float32", mu, logvar, loss=out[0], gradients=out[1:])
    assert np.isfinite(out).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_travel(kernels, memory, dtype):
    mu = memory.input(np.array([np.nan, np.inf, 0.0, 0.0, 0.0]), dtype)
    logvar = memory.input(np.array([0.0, 0.0, np.nan, np.inf, -np.inf]), dtype)
    out = memory.output(5, dtype)
    run(kernels, memory, dtype, mu, logvar, loss=out)
    np.testing.assert_array_equal(decode(out, dtype), [np.nan, np.inf, np.nan, np.nan, np.inf])

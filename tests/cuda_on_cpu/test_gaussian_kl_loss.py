# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, assert_accurate, decode

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


@pytest.mark.parametrize("dtype", DTYPES)
def test_elementwise(kernels, memory, dtype):
    for what, size, misaligned, mu, logvar, exact_mu, exact_logvar in cases(memory, dtype):
        out = memory.output(size, dtype, misaligned)
        kernels.gaussian_kl(dtype, mu, logvar, out, size, None)
        assert_accurate(out, 0.5 * (exact_mu**2 + np.exp(exact_logvar) - 1 - exact_logvar), dtype, what)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum(kernels, memory, dtype):
    for what, size, _, mu, logvar, exact_mu, exact_logvar in cases(memory, dtype):
        partial, out = memory.output(kernels.gaussian_kl_partials(size), np.float32), memory.output(1, dtype)
        kernels.gaussian_kl_sum(dtype, mu, logvar, partial, 0.37, out, size, None)
        exact = 0.37 * 0.5 * (exact_mu**2 + np.exp(exact_logvar) - 1 - exact_logvar).sum()
        assert_accurate(out, np.array([exact]), dtype, what)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad_is_scalar", [True, False])
def test_backward(kernels, memory, grad_is_scalar, dtype):
    for what, size, misaligned, mu, logvar, exact_mu, exact_logvar in cases(memory, dtype):
        grad = memory.input(random(1 if grad_is_scalar else size, 3), dtype, misaligned)
        grad_mu, grad_logvar = (memory.output(size, dtype, misaligned) for _ in range(2))
        kernels.gaussian_kl_backward(dtype, grad, grad_is_scalar, 0.37, mu, logvar, grad_mu, grad_logvar, size, None)
        upstream = 0.37 * decode(grad, dtype)
        assert_accurate(grad_mu, upstream * exact_mu, dtype, what)
        assert_accurate(grad_logvar, upstream * 0.5 * (np.exp(exact_logvar) - 1), dtype, what)


@pytest.mark.parametrize("which", range(4))
def test_one_misaligned_array_is_enough(kernels, memory, which):
    """The packed path needs all arrays aligned.  Only the sanitizer sees a misaligned access on the host."""
    offset = [int(which == i) for i in range(4)]
    mu, logvar = memory.input(random(64, 1), "float32", offset[0]), memory.input(random(64, 2), "float32", offset[1])
    out, grad_logvar = memory.output(64, "float32", offset[2]), memory.output(64, "float32", offset[3])
    kernels.gaussian_kl("float32", mu, logvar, out, 64, None)
    assert np.isfinite(out).all()
    kernels.gaussian_kl_backward("float32", mu, False, 1.0, mu, logvar, out, grad_logvar, 64, None)
    assert np.isfinite([out, grad_logvar]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_travel(kernels, memory, dtype):
    mu = memory.input(np.array([np.nan, np.inf, 0.0, 0.0, 0.0]), dtype)
    logvar = memory.input(np.array([0.0, 0.0, np.nan, np.inf, -np.inf]), dtype)
    out = memory.output(5, dtype)
    kernels.gaussian_kl(dtype, mu, logvar, out, 5, None)
    np.testing.assert_array_equal(decode(out, dtype), [np.nan, np.inf, np.nan, np.nan, np.inf])

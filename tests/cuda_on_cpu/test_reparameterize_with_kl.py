# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, assert_accurate, decode
from tests.cuda_on_cpu.test_reparameterize import SEED, SIZES, noise, random

pytestmark = pytest.mark.usefixtures("schedule")

SCALE = 0.37


@pytest.fixture
def seed(memory):
    return memory.input(np.array([SEED]), np.int64)


def forward(kernels, memory, dtype, mu, logvar, seed, z, *, kl=None, sum=None, scratch=None):
    if scratch is None:
        scratch = memory.output(kernels.reparameterize_with_kl_scratch(mu.size), np.float32)
    kernels.reparameterize_with_kl(dtype, mu, logvar, seed, z, kl, mu.size, scratch, SCALE, sum)


def latents(memory, dtype, size, misaligned=0):
    return [memory.input(random(size, s), dtype, misaligned) for s in (1, 2)]


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_forward(kernels, memory, seed, size, dtype, misaligned):
    mu, logvar = latents(memory, dtype, size, misaligned)
    m, v = decode(mu, dtype), decode(logvar, dtype)
    exact_z, exact_kl = m + np.exp(0.5 * v) * noise(size), 0.5 * (m**2 + np.exp(v) - 1 - v)
    z, total = memory.output(size, dtype, misaligned), memory.output(1, dtype)
    forward(kernels, memory, dtype, mu, logvar, seed, z, sum=total)
    assert_accurate(z, exact_z, dtype)
    assert_accurate(total, np.array([SCALE * exact_kl.sum()]), dtype)

    z, kl = (memory.output(size, dtype, misaligned) for _ in range(2))
    forward(kernels, memory, dtype, mu, logvar, seed, z, kl=kl)
    assert_accurate(z, exact_z, dtype)
    assert_accurate(kl, exact_kl, dtype)


@pytest.mark.parametrize("is_reduced", [True, False])
@pytest.mark.parametrize("uses_z", [True, False])
@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(kernels, memory, seed, dtype, misaligned, uses_z, is_reduced):
    for size in SIZES:
        mu, logvar = latents(memory, dtype, size, misaligned)
        grad_z = memory.input(random(size, 3), dtype, misaligned)
        grad_kl = memory.input(random(1 if is_reduced else size, 4), dtype, 1 if is_reduced else misaligned)
        grad_mu, grad_logvar = (memory.output(size, dtype, misaligned) for _ in range(2))
        kernels.reparameterize_with_kl_backward(
            *(dtype, mu, logvar, seed, grad_z if uses_z else None, grad_kl, is_reduced, SCALE),
            *(grad_mu, grad_logvar, size),
        )
        m, v = decode(mu, dtype), decode(logvar, dtype)
        of_z = decode(grad_z, dtype) if uses_z else np.zeros(size)
        of_kl = SCALE * decode(grad_kl, dtype)
        assert_accurate(grad_mu, of_z + of_kl * m, dtype, f"size {size}")
        exact = of_z * 0.5 * np.exp(0.5 * v) * noise(size) + of_kl * 0.5 * (np.exp(v) - 1)
        assert_accurate(grad_logvar, exact, dtype, f"size {size}")


def test_sample_is_that_of_reparameterize(kernels, memory, seed):
    mu, logvar = latents(memory, "float32", 2053)
    z, expected = memory.output(2053, "float32"), memory.output(2053, "float32")
    forward(kernels, memory, "float32", mu, logvar, seed, z, sum=memory.output(1, "float32"))
    kernels.reparameterize("float32", mu, logvar, seed, 0, expected, 2053)
    np.testing.assert_array_equal(z, expected)


def test_sum_is_the_same_whichever_block_is_last(kernels, memory, seed):
    """And in a replay of a CUDA graph, which finds in the scratch what the run before left there."""
    size = 5000  # 5 blocks aligned; misaligned the most that there are
    for misaligned in (0, 1):
        mu, logvar = latents(memory, "float32", size, misaligned)
        z = memory.output(size, "float32", misaligned)
        scratch = memory.output(kernels.reparameterize_with_kl_scratch(size), "float32")
        totals = []
        for order in ("forward", "reverse", "random", "random"):
            kernels.set_schedule(order, len(totals))
            totals.append(memory.output(1, "float32"))
            forward(kernels, memory, "float32", mu, logvar, seed, z, sum=totals[-1], scratch=scratch)
        np.testing.assert_array_equal(totals, [totals[0]] * 4)
        assert np.isfinite(totals[0])


@pytest.mark.parametrize("which", range(4))
def test_one_misaligned_array_is_enough_forward(kernels, memory, seed, which):
    """The packed path needs all arrays aligned.  Only the sanitizer sees a misaligned access on the host."""
    offset = [int(which == i) for i in range(4)]
    mu, logvar = (memory.input(random(64, s), "float32", offset[s]) for s in range(2))
    z, kl = (memory.output(64, "float32", misaligned) for misaligned in offset[2:])
    forward(kernels, memory, "float32", mu, logvar, seed, z, kl=kl)
    assert np.isfinite([z, kl]).all()


@pytest.mark.parametrize("which", range(6))
def test_one_misaligned_array_is_enough_backward(kernels, memory, seed, which):
    offset = [int(which == i) for i in range(6)]
    mu, logvar, grad_z, grad_kl = (memory.input(random(64, s), "float32", offset[s]) for s in range(4))
    out = [memory.output(64, "float32", misaligned) for misaligned in offset[4:]]
    kernels.reparameterize_with_kl_backward("float32", mu, logvar, seed, grad_z, grad_kl, False, SCALE, *out, 64)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_travel(kernels, memory, seed, dtype):
    mu = memory.input(np.array([np.nan, np.inf, 0.0, 0.0, 0.0]), dtype)
    logvar = memory.input(np.array([0.0, 0.0, np.nan, np.inf, -np.inf]), dtype)
    z, kl, total = memory.output(5, dtype), memory.output(5, dtype), memory.output(1, dtype)
    forward(kernels, memory, dtype, mu, logvar, seed, z, kl=kl)
    np.testing.assert_array_equal(decode(kl, dtype), [np.nan, np.inf, np.nan, np.nan, np.inf])
    np.testing.assert_array_equal(decode(z, dtype), [np.nan, np.inf, np.nan, np.copysign(np.inf, noise(5)[3]), 0])
    forward(kernels, memory, dtype, mu, logvar, seed, z, sum=total)
    assert np.isnan(decode(total, dtype))

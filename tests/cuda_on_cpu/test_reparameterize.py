# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

# Around the packs (4 float32 or 8 half elements), a Philox block, a warp, and more than one block of packs.
SIZES = (0, 1, 5, 8, 9, 33, 2053)
SEED = 0x0123456789ABCDEF  # both key words in use


def random(size, seed):
    return np.random.default_rng(seed).standard_normal(size)


def philox(blocks):
    """The words of the first blocks of philox4x32-10, (blocks, 4), in plain NumPy: this folder's tests run without torch."""
    word = np.uint64(0xFFFFFFFF)
    zero = np.zeros(blocks, np.uint64)
    c = [np.arange(blocks, dtype=np.uint64), zero, zero, zero]
    for r in range(10):
        key = [(SEED + r * 0x9E3779B9) & 0xFFFFFFFF, ((SEED >> 32) + r * 0xBB67AE85) & 0xFFFFFFFF]
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            p1 >> np.uint64(32) ^ c[1] ^ np.uint64(key[0]),
            p1 & word,
            p0 >> np.uint64(32) ^ c[3] ^ np.uint64(key[1]),
            p0 & word,
        ]
    return np.stack(c, axis=1)


def noise(size):
    pairs = (philox((size + 3) // 4) >> np.uint64(8)).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log((pairs[:, 0] + np.uint64(1)) * 2.0**-24))
    angle = 2 * np.pi * 2.0**-24 * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:size]


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("in_memory", [True, False])
def test_forward_and_backward(kernels, memory, size, dtype, misaligned, in_memory):
    mu, logvar = memory.input(random(size, 1), dtype, misaligned), memory.input(random(size, 2), dtype, misaligned)
    seed = (memory.input(np.array([SEED]), np.int64), 0) if in_memory else (None, SEED)
    z, grad_logvar = memory.output(size, dtype, misaligned), memory.output(size, dtype, misaligned)
    kernels.reparameterize(dtype, mu, logvar, *seed, z, size)
    kernels.reparameterize_backward(dtype, mu, logvar, *seed, grad_logvar, size)
    spread = np.exp(0.5 * decode(logvar, dtype)) * noise(size)
    assert_accurate(z, decode(mu, dtype) + spread, dtype)
    assert_accurate(grad_logvar, decode(mu, dtype) * 0.5 * spread, dtype)


def test_noise_is_accurate_to_a_few_ulp(kernels, memory):
    zeros, z = memory.input(np.zeros(5000), "float32"), memory.output(5000, "float32")
    kernels.reparameterize("float32", zeros, zeros, None, SEED, z, 5000)
    np.testing.assert_allclose(z, noise(5000), rtol=4e-7, atol=1e-10)

# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest
import torch

from genimg_fast.reference import philox
from tests.cuda_on_cpu.memory import DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

# Around the packs (4 float32 or 8 half elements), a Philox block, a warp, and more than one block of packs.
SIZES = (0, 1, 3, 4, 5, 7, 8, 9, 17, 33, 2053, 5000)
SEED = np.array([0x0123456789ABCDEF])


def random(size, seed):
    return np.random.default_rng(seed).standard_normal(size)


def noise(size):
    """What the reference draws, in PyTorch."""
    return philox.normal(torch.tensor(SEED[0]), torch.Size([size])).double().numpy()


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_forward_and_backward(kernels, memory, size, dtype, misaligned):
    mu, logvar = memory.input(random(size, 1), dtype, misaligned), memory.input(random(size, 2), dtype, misaligned)
    seed = memory.input(SEED, np.int64)
    z, grad_logvar = memory.output(size, dtype, misaligned), memory.output(size, dtype, misaligned)
    kernels.reparameterize(dtype, mu, logvar, seed, z, size, None)
    kernels.reparameterize_backward(dtype, mu, logvar, seed, grad_logvar, size, None)
    spread = np.exp(0.5 * decode(logvar, dtype)) * noise(size)
    assert_accurate(z, decode(mu, dtype) + spread, dtype)
    assert_accurate(grad_logvar, decode(mu, dtype) * 0.5 * spread, dtype)


def test_noise_is_that_of_the_reference(kernels, memory):
    zeros, z = memory.input(np.zeros(5000), "float32"), memory.output(5000, "float32")
    kernels.reparameterize("float32", zeros, zeros, memory.input(SEED, np.int64), z, 5000, None)
    np.testing.assert_allclose(z, noise(5000), rtol=1e-6, atol=1e-6)

# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

# Fewer kernels of taps than a block has threads, and more.
CHANNELS = [(1, 1), (3, 5), (16, 17), (40, 33), (0, 4), (4, 0)]


def made_shape(out_channels: int, in_channels: int, pools: bool) -> tuple[int, ...]:
    return (out_channels, in_channels, 4, 4) if pools else (in_channels, out_channels, 4, 4)


def made_of(weight: np.ndarray, pools: bool) -> np.ndarray:
    """The taps, mirrored for a transposed convolution, spread by two by two ones or quarters."""
    taps = weight / 4 if pools else weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return sum(np.pad(taps, ((0, 0), (0, 0), (y, 1 - y), (x, 1 - x))) for y in (0, 1) for x in (0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize(("out_channels", "in_channels"), CHANNELS)
def test_forward(kernels, memory, dtype, out_channels, in_channels, pools):
    rng = np.random.default_rng(1)
    weight = memory.input(rng.standard_normal((out_channels, in_channels, 3, 3)), dtype)
    made = memory.output(made_shape(out_channels, in_channels, pools), dtype)
    kernels.resampling_weight(dtype, weight, out_channels, in_channels, pools, made)
    assert_accurate(made, made_of(decode(weight, dtype), pools), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize(("out_channels", "in_channels"), CHANNELS)
def test_backward(kernels, memory, dtype, out_channels, in_channels, pools):
    """The transpose: <made of w, g> = <w, what is made of g> for each w of a basis."""
    rng = np.random.default_rng(2)
    grad = memory.input(rng.standard_normal(made_shape(out_channels, in_channels, pools)), dtype)
    grad_weight = memory.output((out_channels, in_channels, 3, 3), dtype)
    kernels.resampling_weight_grad(dtype, grad, out_channels, in_channels, pools, grad_weight)
    of_tap = made_of(np.eye(9).reshape(9, 1, 3, 3), pools).reshape(9, 16)
    exact = decode(grad, dtype).reshape(*grad.shape[:2], 16) @ of_tap.T
    assert_accurate(
        grad_weight, (exact if pools else exact.transpose(1, 0, 2)).reshape(out_channels, in_channels, 3, 3), dtype
    )

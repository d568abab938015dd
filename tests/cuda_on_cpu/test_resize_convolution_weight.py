# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

# Fewer kernels of taps than a block has threads, and more.
CHANNELS = [(1, 1), (3, 5), (16, 17), (40, 33), (0, 4), (4, 0)]


def sum_of_taps(weight: np.ndarray) -> np.ndarray:
    """[Cin, Cout, 4, 4]: the mirrored taps, spread by ones of two by two."""
    mirrored = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return sum(np.pad(mirrored, ((0, 0), (0, 0), (y, 1 - y), (x, 1 - x))) for y in (0, 1) for x in (0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_channels", "in_channels"), CHANNELS)
def test_forward(kernels, memory, dtype, out_channels, in_channels):
    rng = np.random.default_rng(1)
    weight = memory.input(rng.standard_normal((out_channels, in_channels, 3, 3)), dtype)
    transposed = memory.output((in_channels, out_channels, 4, 4), dtype)
    kernels.resize_convolution_weight(dtype, weight, out_channels, in_channels, transposed)
    assert_accurate(transposed, sum_of_taps(decode(weight, dtype)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_channels", "in_channels"), CHANNELS)
def test_backward(kernels, memory, dtype, out_channels, in_channels):
    """The transpose: <sums of w, g> = <w, what is made of g> for each w of a basis."""
    rng = np.random.default_rng(2)
    grad = memory.input(rng.standard_normal((in_channels, out_channels, 4, 4)), dtype)
    grad_weight = memory.output((out_channels, in_channels, 3, 3), dtype)
    kernels.resize_convolution_weight_grad(dtype, grad, out_channels, in_channels, grad_weight)
    of_tap = sum_of_taps(np.eye(9).reshape(9, 1, 3, 3)).reshape(9, 16)
    exact = (decode(grad, dtype).reshape(in_channels, out_channels, 16) @ of_tap.T).transpose(1, 0, 2)
    assert_accurate(grad_weight, exact.reshape(out_channels, in_channels, 3, 3), dtype)

# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.convolution import conv_transpose
from tests.cuda_on_cpu.memory import CHANNEL_DTYPES, DTYPES, assert_accurate, channel_vectors, decode

pytestmark = pytest.mark.usefixtures("schedule")

# N, Cin, Cout, H, W, kernel, stride, padding, output_padding: small, around the tile of 64 positions by 64 channels and
# the step of 16, with phases of different sizes.
GEOMETRIES = [
    (2, 5, 3, 4, 5, 4, 2, 1, 0),
    (3, 17, 65, 1, 1, 4, 1, 0, 0),
    (2, 3, 7, 7, 5, 3, 2, 1, 1),
    (1, 2, 5, 3, 3, 5, 2, 2, 1),
    (2, 4, 2, 3, 2, 1, 3, 0, 2),
]
RELU, TANH = 1, 3  # csrc/common/activation.h


def run(kernels, memory, geometry, dtype, channels_last, norm, activation, channel_dtypes=("float32",)):
    n, c_in, c_out, height, width, k, stride, padding, output_padding = geometry
    generator = np.random.default_rng(0)
    x = memory.input(generator.standard_normal((n, c_in, height, width)), dtype)
    if channels_last:
        x = memory.input(np.ascontiguousarray(decode(x, dtype).transpose(0, 2, 3, 1)), dtype)
    w = memory.input(generator.standard_normal((c_in, c_out, k, k)) / np.sqrt(c_in * k), dtype)
    values = [generator.standard_normal(c_out) for _ in range(4)]
    values.insert(2, generator.uniform(0.5, 2, c_out))
    channels, exact_channels = channel_vectors(memory, values, channel_dtypes)
    bias, mean, var, bn_weight, bn_bias = (values[:, None, None] for values in exact_channels)

    image = decode(x, dtype).transpose(0, 3, 1, 2) if channels_last else decode(x, dtype)
    exact = conv_transpose(image, decode(w, dtype), stride, padding, output_padding)
    exact += bias
    if norm:
        exact = (exact - mean) / np.sqrt(var + 1e-5) * bn_weight + bn_bias
    exact = np.maximum(exact, 0) if activation == RELU else np.tanh(exact)

    shape = exact.transpose(0, 2, 3, 1).shape if channels_last else exact.shape
    out = memory.output(shape, dtype)
    kernels.conv_transpose2d(
        dtype, *geometry, channels_last, x, w, *(channels if norm else [channels[0], None, None, None, None]), 1e-5, activation, 0.2, out
    )  # fmt: skip
    return out.transpose(0, 3, 1, 2) if channels_last else out, exact


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_matches_float64(kernels, memory, dtype, channels_last):
    for geometry in GEOMETRIES:
        out, exact = run(kernels, memory, geometry, dtype, channels_last, norm=True, activation=RELU)
        assert_accurate(out, exact, dtype, f"{geometry}")


@pytest.mark.parametrize("channel_dtypes", CHANNEL_DTYPES, ids=str)
def test_parameters_of_any_dtype(kernels, memory, channel_dtypes):
    out, exact = run(kernels, memory, GEOMETRIES[0], "float32", False, True, RELU, channel_dtypes)
    assert_accurate(out, exact, "float32")


def test_without_normalisation(kernels, memory):
    out, exact = run(kernels, memory, GEOMETRIES[0], "float32", False, norm=False, activation=TANH)
    assert_accurate(out, exact, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["forward"], indirect=True)
def test_a_phase_for_each_of_many_outputs(kernels, memory):
    """More than the 65,535 that a grid holds along y and z.  Of a single pixel every output is a phase."""
    out, exact = run(kernels, memory, (1, 1, 1, 1, 1, 1, 257, 0, 256), "float32", False, norm=True, activation=RELU)
    assert_accurate(out, exact, "float32")


def test_an_empty_batch_starts_no_kernel(kernels, memory):
    empty = memory.input(np.zeros((0, 2, 3, 3)), "float32")
    w = memory.input(np.ones((2, 3, 4, 4)), "float32")
    out = memory.output((0, 3, 6, 6), "float32")
    kernels.conv_transpose2d(
        "float32", 0, 2, 3, 3, 3, 4, 2, 1, 0, False, empty, w, None, None, None, None, None, 1e-5, RELU, 0.2, out
    )

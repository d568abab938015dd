# SPDX-License-Identifier: MIT
"""cuda/ptx.cuh on the shim, against the fragment layouts as the PTX ISA words them and a plain matrix product."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import decode, encode
from tests.cuda_on_cpu.mode import shows_as_values

pytestmark = pytest.mark.usefixtures("schedule")

GROUP, THREAD = np.divmod(np.arange(32), 4)  # the ISA's groupID and threadID_in_group


def random(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


# ISA: mma.m16n8k16, .f16/.bf16.  a0..a7, b0..b3, c0..c3: (row, column) of each lane, [32] arrays.
def a_16bit(i):
    return GROUP + (0 if i in (0, 1, 4, 5) else 8), THREAD * 2 + i % 2 + (0 if i < 4 else 8)


def b_16bit(i):
    return THREAD * 2 + i % 2 + (0 if i < 2 else 8), GROUP


def accumulator(i):
    return GROUP + (0 if i < 2 else 8), THREAD * 2 + i % 2


# ISA: mma.m16n8k8, .tf32
def a_tf32(i):
    return GROUP + (0 if i in (0, 2) else 8), THREAD + (0 if i < 2 else 4)


def b_tf32(i):
    return THREAD + 4 * i, GROUP


def fragments(matrix, place, count):
    """[32 lanes][count] elements of a matrix, seen as 32-bit registers."""
    return np.ascontiguousarray(np.stack([matrix[place(i)] for i in range(count)], axis=1)).view(np.uint32)


def from_fragments(registers):
    matrix = np.full((16, 8), np.nan, np.float32)
    for i in range(4):
        matrix[accumulator(i)] = registers[:, i]
    return matrix


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mma_m16n8k16(kernels, memory, dtype):
    a, b, c = (
        encode(random((16, 16), 1), dtype),
        encode(random((16, 8), 2), dtype),
        random((16, 8), 3).astype(np.float32),
    )
    acc = memory.output((32, 4), np.float32)
    acc[:] = fragments(c, accumulator, 4).view(np.float32)
    kernels.mma(
        dtype,
        memory.input(fragments(a, a_16bit, 8), np.uint32),
        memory.input(fragments(b, b_16bit, 4), np.uint32),
        acc,
    )
    np.testing.assert_allclose(from_fragments(acc), c + decode(a, dtype) @ decode(b, dtype), rtol=1e-6, atol=1e-6)


def test_mma_m16n8k8_tf32_ignores_the_low_bits(kernels, memory):
    a, b, c = (random(shape, seed).astype(np.float32) for shape, seed in (((16, 8), 1), ((8, 8), 2), ((16, 8), 3)))
    acc = memory.output((32, 4), np.float32)
    acc[:] = fragments(c, accumulator, 4).view(np.float32)
    kernels.mma(
        "float32",
        memory.input(fragments(a, a_tf32, 4), np.uint32),
        memory.input(fragments(b, b_tf32, 2), np.uint32),
        acc,
    )
    a, b = ((m.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64) for m in (a, b))
    np.testing.assert_allclose(from_fragments(acc), c + a @ b, rtol=1e-6, atol=1e-6)


def test_to_tf32_rounds_to_ten_bits_ties_away_from_zero(kernels, memory):
    ulp = 2.0**-10
    x = memory.input([1, 1 + 0.5 * ulp, 1 + 0.49 * ulp, -1 - 1.5 * ulp, 0, np.inf, np.nan, 1e-20], np.float32)
    out = memory.output(x.shape, np.uint32)
    kernels.tf32(x, out, x.size)
    rounded = out.view(np.float32)
    np.testing.assert_array_equal(rounded[:7], [1, 1 + ulp, 1, -1 - 2 * ulp, 0, np.inf, np.nan])
    assert abs(rounded[7] / 1e-20 - 1) < ulp


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(kernels, memory, transposed):
    matrices = memory.input(np.arange(256).reshape(4, 8, 8), np.uint16)
    out = memory.output((32, 4), np.uint32)
    kernels.ldmatrix(matrices, out, transposed)
    pairs = out.view(np.uint16).reshape(32, 4, 2)
    for i in range(4):
        matrix = matrices[i].T if transposed else matrices[i]
        for e in range(2):
            np.testing.assert_array_equal(pairs[:, i, e], matrix[GROUP, 2 * THREAD + e])


@pytest.mark.parametrize("valid_chunks", [32, 7, 0])
def test_async_copy(kernels, memory, valid_chunks):
    x, out = memory.input(random((32, 4), 1), np.float32), memory.output((32, 4), np.float32)
    kernels.async_copy(x, out, valid_chunks, True)
    expected = np.where(np.arange(32)[:, None] < valid_chunks, x, 0).reshape(16, 2, 4)[:, ::-1].reshape(32, 4)
    np.testing.assert_array_equal(out, expected)


@shows_as_values
def test_missing_wait_shows(kernels, memory):
    x, out = memory.input(random((32, 4), 1), np.float32), memory.output((32, 4), np.float32)
    out[:] = 0
    kernels.async_copy(x, out, 32, False)
    assert np.isnan(out).all()


def test_async_pipeline(kernels, memory):
    x, out = memory.input(random((5, 32, 4), 1), np.float32), memory.output((5, 32, 4), np.float32)
    kernels.async_pipeline(x, out, 5, True)
    np.testing.assert_array_equal(out, x[:, ::-1])


@shows_as_values
def test_copy_into_a_buffer_that_is_still_read_shows(kernels, memory):
    x, out = memory.input(random((5, 32, 4), 1), np.float32), memory.output((5, 32, 4), np.float32)
    kernels.async_pipeline(x, out, 5, False)
    assert not np.array_equal(out, x[:, ::-1])


def test_misaligned_async_copy_raises(kernels, memory):
    x, out = memory.input(np.zeros(132), np.float32, misaligned=1), memory.output((32, 4), np.float32)
    with pytest.raises(RuntimeError, match=r"cp.async: global address is not 16-byte aligned"):
        kernels.async_copy(x, out, 32, True)

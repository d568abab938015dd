# SPDX-License-Identifier: MIT
"""cuda/ptx_sm90.cuh on the shim, against the PTX ISA's layouts and plain NumPy; and that what a kernel forgets shows."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import decode, encode
from tests.cuda_on_cpu.mode import shows_as_values

pytestmark = pytest.mark.usefixtures("schedule")

NONE, NO_WAIT, NO_FENCE, NO_BARRIER = range(4)  # Fault of ptx_sm90_controls.cu


def swizzle(rows: np.ndarray) -> np.ndarray:
    """Rows of 128 bytes as TMA writes them from a multiple of 1024 on: chunk i of row r lies at place i ^ (r % 8)."""
    chunks = rows.reshape(len(rows), 8, -1)
    out = np.empty_like(chunks)
    for r in range(len(rows)):
        for i in range(8):
            out[r, i ^ (r % 8)] = chunks[r, i]
    return out.reshape(rows.shape)


def box_of(array, box, steps, first):
    """The box of a C-ordered array, all fastest first; zeros beyond it."""
    out = np.zeros(box[::-1], array.dtype)
    for at in np.ndindex(*box[::-1]):
        place = [f + i * s for f, i, s in zip(first[::-1], at, steps[::-1], strict=True)]
        if all(0 <= p < size for p, size in zip(place, array.shape, strict=True)):
            out[at] = array[tuple(place)]
    return out


BOXES = [  # sizes, box, steps, first: fastest first
    ((64, 5, 4, 3), (64, 3, 2, 2), (1, 1, 1, 1), (0, 1, 1, 1)),  # inside
    ((64, 5, 4, 3), (64, 7, 6, 2), (1, 1, 1, 1), (0, -1, -1, 2)),  # beyond it on all sides
    ((40, 6, 5, 2), (64, 4, 3, 1), (1, 1, 1, 1), (0, 0, 0, 0)),  # fewer channels than the box
    ((136, 9, 9, 1), (64, 5, 4, 1), (1, 2, 2, 1), (128, -1, -1, 0)),  # every other pixel, from before the first
    ((64, 3, 1, 1), (64, 3, 1, 1), (1, 1, 1, 1), (0, 9, 0, 0)),  # nothing of the array
]


@pytest.mark.parametrize(("sizes", "box", "steps", "first"), BOXES, ids=str)
def test_box(kernels, memory, sizes, box, steps, first):
    array = memory.input(np.random.default_rng(0).standard_normal(sizes[::-1]), "float16")
    numbers = memory.input(np.array([*sizes, *box, *steps, *first]), np.int64)
    expected = swizzle(box_of(array, box, steps, first).reshape(-1, 64))
    out = memory.output(expected.nbytes, np.uint8)
    kernels.tma_box(array, numbers, True, expected.nbytes, out)
    np.testing.assert_array_equal(out.view(np.float16).reshape(expected.shape), expected)


def box_arguments(memory, steps=(1, 1, 1, 1), sizes=(64, 4, 1, 1), misaligned=0):
    array = memory.input(np.ones(sizes[::-1]), "float16", misaligned)
    numbers = memory.input(np.array([*sizes, 64, 4, 1, 1, *steps, 0, 0, 0, 0]), np.int64)
    return array, numbers, memory.output(512, np.uint8)


@shows_as_values
def test_a_box_that_is_not_waited_for_is_nan(kernels, memory):
    array, numbers, out = box_arguments(memory)
    kernels.tma_box(array, numbers, False, 512, out)
    assert np.isnan(out.view(np.float16)).all()


@pytest.mark.parametrize("announced", [510, 514])
def test_bytes_that_were_not_announced_stop_the_block(kernels, memory, announced):
    array, numbers, out = box_arguments(memory)
    with pytest.raises(RuntimeError, match=r"the block cannot go on: .* at mbarrier.*wait.* \(ptx_sm90_controls\.cu"):
        kernels.tma_box(array, numbers, True, announced, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"misaligned": 1}, "tensor map: base is not 16-byte aligned"),
        ({"steps": (1, 9, 1, 1)}, "tensor map: dimension 1 is none that the hardware takes"),
        ({"steps": (2, 1, 1, 1)}, "tensor map: dimension 0"),
        ({"sizes": (63, 4, 1, 1)}, "tensor map: dimension 1"),  # rows of 126 bytes
    ],
)
def test_maps_that_the_driver_would_refuse_raise(kernels, memory, change, message):
    array, numbers, out = box_arguments(memory, **change)
    with pytest.raises(RuntimeError, match=message):
        kernels.tma_box(array, numbers, True, 512, out)


def test_descriptor_is_that_of_the_isa(kernels):
    """PTX ISA, "Matrix Descriptor Format": bits 0-13 address / 16, 32-45 stride / 16, 49-51 base offset, 62-63 swizzle."""
    bits = kernels.swizzled_descriptor(0x2C400) % 2**64
    assert bits & 0x3FFF == 0x2C400 >> 4
    assert bits >> 32 & 0x3FFF == 1024 >> 4
    assert bits >> 49 & 7 == 0
    assert bits >> 62 == 1  # of 128 bytes


# ISA, "Register Fragments for wgmma.mma_async.m64nNk16": warp w of four has rows 16 w to 16 w + 15.
WARP, LANE = np.divmod(np.arange(128), 32)
GROUP, THREAD = np.divmod(LANE, 4)


def a_place(i):  # of a0..a7
    return 16 * WARP + GROUP + (0 if i in (0, 1, 4, 5) else 8), THREAD * 2 + i % 2 + (0 if i < 4 else 8)


def d_place(i):  # of d0..d(N/2 - 1)
    return 16 * WARP + GROUP + (0 if i % 4 < 2 else 8), i // 4 * 8 + THREAD * 2 + i % 2


@pytest.fixture(params=["float16", "bfloat16"])
def operands(request, memory):
    dtype, generator = request.param, np.random.default_rng(0)
    a, b, c = (generator.standard_normal(shape) for shape in ((64, 16), (128, 64), (64, 128)))
    a, b, c = encode(a, dtype), memory.input(b, dtype), c.astype(np.float32)
    fragments = np.ascontiguousarray(np.stack([a[a_place(i)] for i in range(8)], axis=1)).view(np.uint32)
    return dtype, a, b, c, memory.input(fragments, np.uint32)


@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("depth", [0, 3])
def test_wgmma(kernels, memory, operands, columns, depth):
    dtype, a, b, c, fragments = operands
    sums = memory.output((128, columns // 2), np.float32)
    for i in range(columns // 2):
        sums[:, i] = c[d_place(i)]
    kernels.wgmma_product(dtype, columns, b, fragments, sums, depth, NONE)
    right = decode(b, dtype)[:columns, 16 * depth : 16 * depth + 16]
    expected = c[:, :columns] + decode(a, dtype) @ right.T
    actual = np.full((64, columns), np.nan, np.float32)
    for i in range(columns // 2):
        actual[d_place(i)] = sums[:, i]
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@shows_as_values
def test_sums_are_nan_until_they_are_waited_for(kernels, memory, operands):
    dtype, _, b, _, fragments = operands
    sums = memory.output((128, 32), np.float32)
    sums[:] = 0
    kernels.wgmma_product(dtype, 64, b, fragments, sums, 0, NO_WAIT)
    assert np.isnan(sums).all()


def test_a_missing_fence_raises(kernels, memory, operands):
    dtype, _, b, _, fragments = operands
    sums = memory.output((128, 32), np.float32)
    with pytest.raises(RuntimeError, match=r"registers may have been .* since the last wgmma.fence"):
        kernels.wgmma_product(dtype, 64, b, fragments, sums, 0, NO_FENCE)


@pytest.fixture
def rows(memory):
    return memory.input(np.random.default_rng(0).standard_normal((7, 64)), "float16"), memory.output((7, 64), np.uint16)


def test_ring(kernels, rows):
    array, out = rows
    kernels.tma_ring(array, 7, NONE, out)
    np.testing.assert_array_equal(out.view(np.float16), array)


def test_a_buffer_that_is_filled_while_it_is_read_shows(kernels, rows):
    """As values, or, where the loads run so far ahead that they enter the phases of others, as an error."""
    array, out = rows
    with contextlib.suppress(RuntimeError):
        kernels.tma_ring(array, 7, NO_WAIT, out)
    assert not np.array_equal(out.view(np.float16), array)


def test_a_copy_that_was_not_announced_stops_the_block(kernels, rows):
    array, out = rows
    with pytest.raises(RuntimeError, match="cannot go on"):
        kernels.tma_ring(array, 7, NO_BARRIER, out)

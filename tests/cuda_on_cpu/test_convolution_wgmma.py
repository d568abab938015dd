# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.convolution import LEAKY_RELU, NONE, RELU, SIGMOID, TANH, Case, Sizes
from tests.cuda_on_cpu.memory import CHANNEL_DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

TILES = {"128x128": 0, "256x64": 1, "128x64": 2}  # WgmmaTileChoice
KERNEL = "convolution_wgmma"

# Around a tile of 128 rows by 64 columns, a patch of 64 channels, and rings of 2 patches and 3 or 4 weights.
SIZES = [
    Sizes(True, 2, 72, 72, 5, 4, 4, 2, 1),  # k4s2p1: four phases of 2 x 2 taps, two patches, two column tiles
    Sizes(True, 9, 200, 8, 4, 4, 4, 2, 1),  # eight images a tile, and one more; four patches: each buffer twice
    Sizes(True, 1, 8, 8, 20, 19, 4, 2, 1),  # several tiles an image, the last of each row and column in part
    Sizes(True, 5, 8, 8, 4, 4, 5, 1, 2),  # fewer images than a tile could take fit into a patch
    Sizes(True, 130, 136, 24, 1, 1, 4, 1, 0),  # a GEMM: patches of one pixel, more images than a tile takes
    Sizes(True, 2, 8, 5, 4, 5, 3, 2, 1, 1),  # phases of 1, 2 and 4 taps; an odd number of output channels
    Sizes(True, 1, 16, 16, 5, 5, 3, 2, 1, 0),  # phases of different sizes
    Sizes(True, 2, 8, 8, 3, 3, 2, 2, 0),  # one tap a phase
    Sizes(True, 1, 8, 8, 3, 2, 1, 3, 0, 2),  # most phases have no tap at all
    Sizes(True, 1, 8, 16, 1, 1, 4, 2, 1),  # one pixel and padding
    Sizes(True, 1, 8, 8, 6, 5, 5, 2, 2, 1),
    Sizes(False, 2, 72, 136, 8, 6, 4, 2, 1),  # stride 2: four classes of 2 x 2 taps
    Sizes(False, 1, 136, 24, 5, 7, 3, 1, 1),  # one class of nine
    Sizes(False, 1, 8, 8, 40, 33, 3, 1, 1),
    Sizes(False, 1, 8, 5, 7, 7, 5, 2, 2),  # classes of 3 and 2 taps along an axis
    Sizes(False, 1, 8, 8, 11, 10, 3, 3, 1),  # stride 3: nine classes of one tap
    Sizes(False, 1, 8, 8, 7, 6, 3, 1, 2, 0, 2),  # dilation
    Sizes(False, 3, 32, 1, 4, 4, 4, 1, 0),  # a discriminator's last layer
    Sizes(False, 1, 64, 96, 3, 3, 1),
    Sizes(False, 1, 8, 8, 9, 9, 2, 3, 0),  # a stride beyond the kernel: fewer classes than the stride
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("tile", "dtype"), [("128x128", "float16"), ("256x64", "bfloat16"), ("128x64", "bfloat16")])
def test_block(kernels, memory, sizes, tile, dtype):
    assert not kernels.why_not_wgmma(dtype, sizes.array())
    case = Case(memory, sizes, dtype)
    out = case.run(kernels, memory, TILES[tile], case.norm, LEAKY_RELU, 0.2, kernel=KERNEL)
    assert_accurate(out, case.exact_block(LEAKY_RELU, 0.2), dtype)


@pytest.mark.parametrize("activation", [NONE, RELU, LEAKY_RELU, TANH, SIGMOID])
def test_every_activation(kernels, memory, activation):
    case = Case(memory, SIZES[0], "bfloat16")
    out = case.run(kernels, memory, TILES["128x128"], case.norm, activation, 0.2, kernel=KERNEL)
    assert_accurate(out, case.exact_block(activation, 0.2), "bfloat16")


@pytest.mark.parametrize("channel_dtypes", CHANNEL_DTYPES, ids=str)
def test_parameters_of_any_dtype(kernels, memory, channel_dtypes):
    case = Case(memory, SIZES[0], "bfloat16", channel_dtypes)
    out = case.run(kernels, memory, TILES["128x64"], case.norm, RELU, kernel=KERNEL)
    assert_accurate(out, case.exact_block(RELU, 0.0), "bfloat16")


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[2], SIZES[5], SIZES[10]], ids=str)
def test_statistics(kernels, memory, tile, sizes):
    """Of tiles that are filled in part, and of phases that are smaller than the first."""
    dtype = "float16" if tile == "256x64" else "bfloat16"  # test_block has the other of each
    case = Case(memory, sizes, dtype)
    out, mean, var = case.run_with_statistics(kernels, memory, TILES[tile], KERNEL)
    assert_accurate(out, case.exact, dtype)
    case.assert_statistics(out, mean, var)


def test_not_a_number_stays_where_it_belongs(kernels, memory):
    """A NaN reaches the outputs that its pixel has a part in, and no other, though patches hold more pixels than those."""
    sizes = Sizes(True, 3, 8, 8, 6, 6, 4, 2, 1)
    case = Case(memory, sizes, "float16")
    poisoned = decode(case.x, "float16")
    poisoned[1, 2, 3, 1] = np.nan
    case.x = memory.input(poisoned, "float16")
    out = case.run(kernels, memory, TILES["128x64"], kernel=KERNEL)
    expected = np.zeros((3, 12, 12), bool)
    expected[1, 2 * 2 - 1 : 2 * 2 + 3, 2 * 3 - 1 : 2 * 3 + 3] = True
    np.testing.assert_array_equal(np.isnan(decode(out, "float16")).all(-1), expected)
    np.testing.assert_array_equal(np.isnan(decode(out, "float16")).any(-1), expected)


def test_an_empty_batch_starts_no_kernel(kernels, memory):
    case = Case(memory, Sizes(True, 0, 8, 8, 3, 3, 4, 2, 1), "float16")
    assert case.run(kernels, memory, TILES["128x64"], kernel=KERNEL).size == 0


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(True, 1, 12, 8, 4, 4, 4, 2, 1),  # pixels that are no multiple of 16 bytes
        Sizes(False, 1, 8, 8, 9, 9, 3, 2, 1, 0, 2),  # stride and dilation
        Sizes(True, 1, 8, 8, 1, 1, 1, 3, 1, 2),  # the only tap sees nothing
        Sizes(False, 1, 8, 8, 40, 40, 3, 9, 1),  # TMA takes every eighth pixel at most
        Sizes(False, 1, 8, 8, 8, 8, 9, 1, 4),  # 81 taps
        Sizes(False, 1, 8, 8, 200, 200, 2, 1, 0, 0, 120),  # no patch holds both taps
    ],
    ids=str,
)
def test_what_it_does_not_take(kernels, sizes):
    assert kernels.why_not_wgmma("bfloat16", sizes.array())


def test_float32_is_not_taken(kernels):
    assert kernels.why_not_wgmma("float32", SIZES[0].array())


def test_tile_follows_the_work(kernels):
    def chosen(n, c_in, c_out, size, transposed=True):
        sizes = Sizes(transposed, n, c_in, c_out, size, size, 4, 2, 1).array()
        return next(name for name, code in TILES.items() if code == kernels.choose_wgmma_tile(sizes, 132))

    assert chosen(1024, 512, 256, 4) == "128x128"
    assert chosen(1024, 128, 64, 16) == "256x64"
    assert chosen(64, 512, 256, 4) == "128x64"  # too little work for larger ones

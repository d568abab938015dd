# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.convolution import LEAKY_RELU, NONE, RELU, SIGMOID, TANH, Case, Sizes
from tests.cuda_on_cpu.memory import CHANNEL_DTYPES, DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

TILES = {"128x128": 0, "256x64": 1, "128x64": 2, "64x64": 3}  # GemmTileChoice

# Around a tile of 64 rows by 64 columns, a step of 32 channels (16 of float32) and a copy of 8 of them.
TRANSPOSED = [
    Sizes(True, 2, 40, 72, 5, 4, 4, 2, 1),  # k4s2p1: four phases, two steps a tap, two column tiles
    Sizes(True, 3, 100, 24, 1, 1, 4, 1, 0),  # a GEMM; pixels that are no multiple of 16 bytes
    Sizes(True, 2, 8, 5, 4, 5, 3, 2, 1, 1),  # phases of 1, 2 and 4 taps; an odd number of output channels
    Sizes(True, 1, 16, 16, 5, 5, 3, 2, 1, 0),  # phases of different sizes
    Sizes(True, 1, 8, 8, 9, 8, 3, 2, 1),  # the first phase takes a second tile of 64 rows, the others do not
    Sizes(True, 1, 2, 8, 4, 3, 5, 2, 2, 1),
    Sizes(True, 2, 8, 8, 3, 3, 2, 2, 0),
    Sizes(True, 1, 8, 8, 3, 2, 1, 3, 0, 2),  # most phases have no tap at all
    Sizes(True, 1, 8, 16, 1, 1, 4, 2, 1),  # one pixel and padding
    Sizes(True, 1, 8, 16, 3, 4, 6, 2, 2),  # more taps than are packed at once, and whole packs of float32 alone
]
PLAIN = [
    Sizes(False, 2, 40, 72, 8, 6, 4, 2, 1),
    Sizes(False, 1, 16, 24, 5, 7, 3, 1, 1),
    Sizes(False, 2, 6, 5, 7, 7, 5, 2, 2),
    Sizes(False, 2, 8, 8, 7, 6, 3, 1, 2, 0, 2),
    Sizes(False, 3, 32, 1, 4, 4, 4, 1, 0),  # a discriminator's last layer
    Sizes(False, 1, 64, 96, 3, 3, 1),
    Sizes(False, 1, 8, 8, 5, 6, 8, 1, 4),  # the most taps
    Sizes(False, 1, 18, 8, 5, 4, 3, 1, 1),  # copied 4 bytes at a time
]
FEW_CHANNELS = [  # around a step of 32 values (16 of float32), and of 128 rows
    Sizes(False, 2, 3, 72, 18, 14, 4, 2, 1),  # a discriminator's first layer: 48 values
    Sizes(False, 1, 1, 8, 6, 6, 3, 1, 1),  # 9
    Sizes(False, 1, 2, 8, 6, 6, 4, 2, 1),  # 32
    Sizes(False, 1, 3, 5, 9, 7, 5, 2, 2, 0, 2),  # 75, dilated
    Sizes(False, 1, 11, 8, 5, 5, 3, 1, 1),  # 99: more steps than stages
    Sizes(False, 1, 15, 8, 3, 3, 1),  # 15, of one tap
    Sizes(True, 2, 3, 8, 5, 4, 4, 2, 1),  # 12 in each of four phases
    Sizes(True, 1, 5, 8, 5, 5, 3, 2, 1, 1),  # 5, 10 and 20
    Sizes(True, 2, 1, 40, 1, 1, 4, 1, 0),  # the data gradient of a discriminator's last layer
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", TRANSPOSED + PLAIN + FEW_CHANNELS, ids=str)
def test_matches_float64(kernels, memory, sizes, dtype):
    case = Case(memory, sizes, dtype)
    tile = "64x64" if sizes.c_in % 8 == 0 or sizes.c_in > 15 else "128x64"
    out = case.run(kernels, memory, TILES[tile], case.norm, LEAKY_RELU, 0.2)
    assert_accurate(out, case.exact_block(LEAKY_RELU, 0.2), dtype)


@pytest.mark.parametrize("activation", [NONE, RELU, LEAKY_RELU, TANH, SIGMOID])
def test_every_activation(kernels, memory, activation):
    case = Case(memory, TRANSPOSED[0], "bfloat16")
    out = case.run(kernels, memory, TILES["128x64"], case.norm, activation, 0.2)
    assert_accurate(out, case.exact_block(activation, 0.2), "bfloat16")


@pytest.mark.parametrize("channel_dtypes", CHANNEL_DTYPES, ids=str)
def test_parameters_of_any_dtype(kernels, memory, channel_dtypes):
    case = Case(memory, TRANSPOSED[0], "bfloat16", channel_dtypes)
    out = case.run(kernels, memory, TILES["64x64"], case.norm, RELU)
    assert_accurate(out, case.exact_block(RELU, 0.0), "bfloat16")


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tile_with_statistics(kernels, memory, tile, dtype):
    """More rows than one tile has, and a last one that is partly filled."""
    sizes = Sizes(True, 3, 8, 136, 10, 10, 2, 2, 0)
    case = Case(memory, sizes, dtype)
    out, mean, var = case.run_with_statistics(kernels, memory, TILES[tile])
    assert_accurate(out, case.exact, dtype)
    case.assert_statistics(out, mean, var)


def test_statistics_with_few_channels(kernels, memory):
    case = Case(memory, FEW_CHANNELS[0], "bfloat16")
    case.assert_statistics(*case.run_with_statistics(kernels, memory, TILES["128x64"]))


def test_statistics_of_a_mean_far_beyond_the_deviations(kernels, memory):
    sizes = Sizes(False, 2, 4, 8, 9, 9, 3, 1, 1)
    case = Case(memory, sizes, "float32")
    case.bias = memory.input(np.full(sizes.c_out, 3000.0), np.float32)
    out, _, var = case.run_with_statistics(kernels, memory, TILES["64x64"])
    values = decode(out, "float32")
    np.testing.assert_allclose(var, values.var((0, 1, 2)), rtol=1e-4)  # a float at 3000 is a step of 2e-4


def test_many_splits_are_merged_in_two_stages(kernels, memory):
    splits, channels, count = 1500, 9, 64
    generator = np.random.default_rng(0)
    values = generator.standard_normal((splits, count, channels)) + 5
    scratch = memory.output(kernels.batch_norm_merge_scratch(splits, channels), np.float32)
    means, m2s = values.mean(1), values.var(1) * count
    scratch[: 3 * splits * channels] = np.stack([np.full_like(means, count), means, m2s], axis=-1).ravel()
    mean, var = memory.output(channels, np.float32), memory.output(channels, np.float32)
    kernels.batch_norm_merge_statistics(scratch, splits, channels, mean, var)
    np.testing.assert_allclose(mean, values.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(var, values.var((0, 1)), rtol=1e-6)


def test_not_a_number_stays_where_it_belongs(kernels, memory):
    """A NaN reaches the outputs that its pixel has a part in, and no other."""
    sizes = Sizes(True, 1, 8, 8, 6, 6, 4, 2, 1)
    case = Case(memory, sizes, "float16")
    poisoned = decode(case.x, "float16")
    poisoned[0, 2, 3, 1] = np.nan
    case.x = memory.input(poisoned, "float16")
    out = case.run(kernels, memory, TILES["64x64"])
    expected = np.zeros((12, 12), bool)
    expected[2 * 2 - 1 : 2 * 2 + 3, 2 * 3 - 1 : 2 * 3 + 3] = True
    np.testing.assert_array_equal(np.isnan(decode(out, "float16"))[0].all(-1), expected)
    np.testing.assert_array_equal(np.isnan(decode(out, "float16"))[0].any(-1), expected)


def test_an_empty_batch_starts_no_kernel(kernels, memory):
    case = Case(memory, Sizes(True, 0, 8, 8, 3, 3, 4, 2, 1), "float16")
    assert case.run(kernels, memory, TILES["64x64"]).size == 0


def test_tile_follows_the_work(kernels):
    def chosen(n, c_in, c_out, size, multiprocessors=132):
        sizes = Sizes(True, n, c_in, c_out, size, size, 4, 2, 1).array()
        return next(name for name, code in TILES.items() if code == kernels.choose_tile(sizes, multiprocessors))

    assert chosen(1024, 512, 256, 4) == "128x128"
    assert chosen(1024, 128, 64, 16) == "256x64"  # 64 columns would leave half of the larger one empty
    assert chosen(1, 512, 256, 4) == "64x64"  # too little work for large tiles


@pytest.mark.parametrize(
    ("sizes", "tile"), [(Sizes(True, 2, 100, 24, 1, 1, 4, 1, 0), "64x64"), (FEW_CHANNELS[0], "128x64")], ids=str
)
def test_pixels_of_odd_size_have_one_tile(kernels, memory, sizes, tile):
    case = Case(memory, sizes, "float16")
    assert kernels.choose_tile(case.sizes.array(), 132) == TILES[tile]
    with pytest.raises(RuntimeError, match="this tile copies 16 bytes at a time"):
        case.run(kernels, memory, TILES["128x128"])

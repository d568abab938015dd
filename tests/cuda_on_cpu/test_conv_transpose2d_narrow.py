# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.convolution import LEAKY_RELU, TANH, Case, Sizes
from tests.cuda_on_cpu.memory import CHANNEL_DTYPES, DTYPES, assert_accurate

pytestmark = pytest.mark.usefixtures("schedule")

ORDERS = {"channels_last": 0, "nchw": 1}  # MemoryOrder

# One patch of 256 pixels and several, in each direction; 1 to 4 channels; rows of 16 bytes in both orders, in one of them
# and in neither.
SIZES = [
    Sizes(True, 2, 40, 3, 16, 16, 4, 2, 1),
    Sizes(True, 1, 8, 3, 9, 40, 4, 2, 1),
    Sizes(True, 1, 8, 3, 70, 5, 4, 2, 1),
    Sizes(True, 1, 8, 4, 19, 21, 4, 2, 1),
    Sizes(True, 2, 8, 1, 5, 7, 5, 2, 2, 1),
    Sizes(True, 1, 16, 2, 17, 20, 3, 2, 1, 1),
    Sizes(True, 1, 8, 3, 300, 2, 2, 2, 0),
    Sizes(True, 1, 8, 3, 18, 17, 3, 1, 1),
    Sizes(True, 1, 8, 1, 6, 4, 2, 3, 1, 2),
    Sizes(True, 2, 104, 3, 1, 1, 4, 1, 0),
    Sizes(True, 1, 8, 1, 2, 301, 4, 2, 1),  # patches of whole packs, whose rows begin anywhere
    Sizes(True, 2, 8, 2, 19, 18, 4, 2, 1),  # k4s2p1 of every number of channels
    Sizes(True, 1, 8, 4, 17, 20, 4, 2, 1),
    Sizes(True, 1, 8, 3, 17, 20, 4, 2, 1, 1),  # and one that is not quite that
    Sizes(True, 1, 8, 4, 7, 12, 3, 3, 0),
    Sizes(True, 1, 8, 2, 5, 13, 3, 1, 1),
    Sizes(True, 1, 8, 2, 6, 9, 5, 2, 2, 1),
]


def run(kernels, memory, case, order, *epilogue):
    """The output as [N, H, W, C]."""
    sizes = case.sizes.array()
    assert not kernels.why_not_narrow(case.dtype, sizes)
    packed = memory.output(kernels.narrow_packed_numel(case.dtype, sizes), case.dtype)
    kernels.narrow_pack_weight(case.dtype, sizes, case.w, packed)
    n, h, w, c = case.exact.shape
    out = memory.output((n, c, h, w) if order == "nchw" else (n, h, w, c), case.dtype)
    kernels.conv_transpose2d_narrow(case.dtype, sizes, case.x, packed, case.bias, *epilogue, out, ORDERS[order])
    return out.transpose(0, 2, 3, 1) if order == "nchw" else out


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matches_float64(kernels, memory, sizes, dtype, order):
    case = Case(memory, sizes, dtype)
    out = run(kernels, memory, case, order, None, None, None, None, 1e-5, TANH, 0.0)
    # In float32 the sums are off by 4 roundings of tanh's largest value already, and tanhf by one of its own.
    assert_accurate(out, np.tanh(case.exact), dtype, roundings=6 if dtype == "float32" else None)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("channel_dtypes", CHANNEL_DTYPES, ids=str)
def test_with_normalisation(kernels, memory, channel_dtypes, order):
    case = Case(memory, SIZES[0], "float16", channel_dtypes)
    out = run(kernels, memory, case, order, *case.norm, 1e-5, LEAKY_RELU, 0.2)
    assert_accurate(out, case.exact_block(LEAKY_RELU, 0.2), "float16")


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(True, 1, 8, 5, 4, 4, 4, 2, 1),  # too many channels
        Sizes(True, 1, 8, 3, 4, 4, 5, 2, 2),  # too many columns
        Sizes(True, 1, 6, 3, 4, 4, 4, 2, 1),  # pixels of 12 bytes
    ],
    ids=str,
)
def test_refuses_what_it_cannot_hold(kernels, sizes):
    assert kernels.why_not_narrow("float16", sizes.array())

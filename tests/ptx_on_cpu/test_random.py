# SPDX-License-Identifier: MIT
"""Convolutions of random sizes, tiles, activations and types of parameters, on nvcc's PTX: each kernel has a path of its
own for most of them, of which the other tests take a few.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.cuda_on_cpu.convolution import NONE, RELU, SIGMOID, TANH, Case, Sizes
from tests.cuda_on_cpu.memory import CHANNEL_DTYPES, DTYPES, assert_accurate
from tests.cuda_on_cpu.test_conv_transpose2d_narrow import ORDERS
from tests.cuda_on_cpu.test_conv_transpose2d_narrow import run as run_narrow

SOURCES = ("convolution_tensor_core", "convolution_wgmma", "conv_transpose2d_narrow", "batch_norm_act")
MOST_PRODUCTS = 5e8


def random_sizes(generator: random.Random) -> Sizes | None:
    """None if the output is empty, or would take long."""
    choice = generator.choice
    transposed, kernel, stride = generator.random() < 0.6, choice([1, 2, 3, 3, 4, 4, 5, 7]), choice([1, 1, 2, 2, 3, 4])
    height, width = choice([(1, 1), (2, 3), (4, 4), (5, 7), (8, 8), (9, 4), (12, 13), (16, 17), (3, 40)])
    sizes = Sizes(
        transposed=transposed,
        n=choice([1, 2, 3, 9, 20] if height * width <= 16 else [1, 2]),
        c_in=choice([1, 3, 6, 8, 8, 16, 24, 64, 72, 136]),
        c_out=choice([1, 2, 3, 4, 5, 8, 24, 65, 130]),
        height=height,
        width=width,
        kernel=kernel,
        stride=stride,
        padding=generator.randint(0, kernel),
        output_padding=generator.randrange(stride) if transposed else 0,
        dilation=choice([1, 1, 1, 2]) if not transposed else 1,
    )
    extents = [
        (size - 1) * stride - 2 * sizes.padding + kernel + sizes.output_padding
        if transposed
        else (size + 2 * sizes.padding - sizes.dilation * (kernel - 1) - 1) // stride + 1
        for size in (height, width)
    ]
    products = sizes.n * extents[0] * extents[1] * sizes.c_in * sizes.c_out * kernel**2
    return sizes if min(extents) > 0 and products <= MOST_PRODUCTS else None


def exact_output(case: Case, normalized: bool, activation: int) -> np.ndarray:
    if normalized:
        return case.exact_block(activation, 0.2)
    y = case.exact
    if activation in (TANH, SIGMOID):
        return np.tanh(y) if activation == TANH else 1 / (1 + np.exp(-y))
    return np.where(y < 0, {NONE: 1, RELU: 0}.get(activation, 0.2) * y, y)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_convolutions(kernels, memory, ptx, seed):
    for name in SOURCES:
        kernels.load_ptx(str(ptx[f"{name}_kernel.cu"]))
    generator = random.Random(seed)
    for _ in range(60):
        sizes, dtype = random_sizes(generator), generator.choice(DTYPES)
        kernel = generator.choice(["convolution_tensor_core", "convolution_wgmma", "narrow"])
        if sizes is None or (kernel == "convolution_wgmma" and kernels.why_not_wgmma(dtype, sizes.array())):
            continue
        if kernel == "narrow" and (not sizes.transposed or kernels.why_not_narrow(dtype, sizes.array())):
            continue
        kernels.set_schedule(generator.choice(["forward", "reverse", "random"]), seed)
        case = Case(memory, sizes, dtype, generator.choice(CHANNEL_DTYPES))
        activation, normalized = generator.randrange(5), generator.random() < 0.7
        epilogue = (*(case.norm if normalized else [None] * 4), 1e-5, activation, 0.2)
        if kernel == "narrow":
            out = run_narrow(kernels, memory, case, generator.choice(list(ORDERS)), *epilogue)
        else:
            tile = generator.randrange(3) if kernel == "convolution_wgmma" else kernels.choose_tile(sizes.array(), 132)
            out = case.run(kernels, memory, tile, epilogue[:4], activation, 0.2, kernel=kernel)
        # Sums in float32 before an activation that takes them to 1 at most: what they are off by does not shrink so.
        roundings = 64 if dtype == "float32" else 3
        what = f"{kernel} {sizes} {dtype} {activation} {normalized}"
        assert_accurate(out, exact_output(case, normalized, activation), dtype, what, roundings)

# SPDX-License-Identifier: MIT
"""Convolutions in float64 by their definitions, and the operands of one, for the tests of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tests.cuda_on_cpu.memory import channel_vectors, decode

NONE, RELU, LEAKY_RELU, TANH, SIGMOID = range(5)  # csrc/common/activation.h


class Sizes(NamedTuple):
    """As the bindings of the tensor-core kernels take them."""

    transposed: bool
    n: int
    c_in: int
    c_out: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1

    def array(self) -> np.ndarray:
        return np.array(self, np.int64)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        channels = (self.c_in, self.c_out) if self.transposed else (self.c_out, self.c_in)
        return (*channels, self.kernel, self.kernel)


def conv_transpose(x, w, stride, padding, output_padding):
    """The definition, written as a scatter: each input pixel adds its kernel to the output."""
    n, _, height, width = x.shape
    _, c_out, k, _ = w.shape
    full = np.zeros((n, c_out, (height - 1) * stride + k + output_padding, (width - 1) * stride + k + output_padding))
    for y in range(height):
        for z in range(width):
            full[:, :, y * stride : y * stride + k, z * stride : z * stride + k] += np.einsum(
                "nc,cokl->nokl", x[:, :, y, z], w
            )
    return full[:, :, padding : full.shape[2] - padding, padding : full.shape[3] - padding]


def conv(x, w, stride, padding, dilation):
    """The definition, written as a gather: each output pixel adds what its kernel covers."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    reach = dilation * (w.shape[2] - 1) + 1
    height, width = ((size - reach) // stride + 1 for size in x.shape[2:])
    out = np.empty((x.shape[0], w.shape[0], height, width))
    for y in range(height):
        for z in range(width):
            patch = x[:, :, y * stride :, z * stride :][:, :, :reach:dilation, :reach:dilation]
            out[:, :, y, z] = np.einsum("ncuv,ocuv->no", patch, w)
    return out


def convolve(sizes: Sizes, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Of a channels_last image, to one."""
    x = x.transpose(0, 3, 1, 2)
    if sizes.transposed:
        out = conv_transpose(x, w, sizes.stride, sizes.padding, sizes.output_padding)
    else:
        out = conv(x, w, sizes.stride, sizes.padding, sizes.dilation)
    return out.transpose(0, 2, 3, 1)


def tf32(values: np.ndarray) -> np.ndarray:
    """Rounded to ten bits of mantissa, ties away from zero."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).view(np.float32)


class Case:
    """Operands of one convolution, and what it must give before normalisation, in float64."""

    def __init__(self, memory, sizes: Sizes, dtype: str, channel_dtypes: Sequence[str] = ("float32",)) -> None:
        generator = np.random.default_rng(0)
        self.sizes, self.dtype = sizes, dtype
        self.x = memory.input(generator.standard_normal((sizes.n, sizes.height, sizes.width, sizes.c_in)), dtype)
        weight = generator.standard_normal(sizes.weight_shape) / np.sqrt(sizes.c_in * sizes.kernel)
        self.w = memory.input(weight, dtype)
        values = [generator.standard_normal(sizes.c_out) for _ in range(4)]
        values.insert(2, generator.uniform(0.5, 2, sizes.c_out))
        (self.bias, *self.norm), (bias, *self.exact_norm) = channel_vectors(memory, values, channel_dtypes)
        seen = tf32 if dtype == "float32" else lambda values: decode(values, dtype)
        self.exact = convolve(sizes, seen(self.x), seen(self.w)) + bias

    def exact_block(self, activation: int, slope: float) -> np.ndarray:
        mean, var, bn_weight, bn_bias = self.exact_norm
        y = (self.exact - mean) / np.sqrt(var + 1e-5) * bn_weight + bn_bias
        if activation == TANH:
            return np.tanh(y)
        if activation == SIGMOID:
            return 1 / (1 + np.exp(-y))
        return np.where(y < 0, {RELU: 0, LEAKY_RELU: slope, NONE: 1}[activation] * y, y)

    def pack(self, kernels, memory) -> np.ndarray:
        sizes = self.sizes.array()
        packed = memory.output(kernels.packed_weight_numel(self.dtype, sizes), self.dtype)
        kernels.pack_weight(self.dtype, sizes, self.w, packed)
        assert not np.isnan(decode(packed, self.dtype)).all()
        return packed

    def run(
        self, kernels, memory, tile: int, norm=(None,) * 4, activation=NONE, slope=0.0, moments=None,
        kernel="convolution_tensor_core",
    ) -> np.ndarray:  # fmt: skip
        out = memory.output(self.exact.shape, self.dtype)
        getattr(kernels, kernel)(
            self.dtype, self.sizes.array(), tile, self.x, self.pack(kernels, memory), self.bias, *norm, 1e-5,
            activation, slope, out, moments,
        )  # fmt: skip
        return out

    def run_with_statistics(
        self, kernels, memory, tile: int, kernel="convolution_tensor_core"
    ) -> tuple[np.ndarray, ...]:
        """The output before normalisation, and the mean and variance of each channel that the kernel's statistics give."""
        splits_of = {"convolution_tensor_core": "statistics_splits", "convolution_wgmma": "wgmma_statistics_splits"}
        splits, channels = getattr(kernels, splits_of[kernel])(self.sizes.array(), tile), self.sizes.c_out
        scratch = memory.output(kernels.batch_norm_merge_scratch(splits, channels), np.float32)
        out = self.run(kernels, memory, tile, moments=scratch, kernel=kernel)
        mean, var = memory.output(channels, np.float32), memory.output(channels, np.float32)
        kernels.batch_norm_merge_statistics(scratch, splits, channels, mean, var)
        return out, mean, var

    def assert_statistics(self, out: np.ndarray, mean: np.ndarray, var: np.ndarray) -> None:
        """They are those of what was stored."""
        values = decode(out, self.dtype)
        np.testing.assert_allclose(mean, values.mean((0, 1, 2)), rtol=0, atol=1e-6)
        np.testing.assert_allclose(var, values.var((0, 1, 2)), rtol=1e-6)

# SPDX-License-Identifier: MIT
"""Convolutions in float64 by their definitions, for the tests of the kernels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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

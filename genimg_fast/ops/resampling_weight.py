# SPDX-License-Identifier: MIT
"""The weight of a convolution and a resampling by two, as that of the one convolution that the two are.

A convolution of kernel 3 after nearest-neighbour upsampling is a transposed convolution of kernel 4 and stride 2, whose taps are
sums of its own: each output pixel sees two rows and two columns, not three.  That is 4 products for 9, and there is no upsampled image
to write, to read, and to keep for backward.  "Resize-convolution" is its name in Odena, Dumoulin and Olah 2016.

A convolution of kernel 3 before a mean over two by two pixels is likewise a plain one of kernel 4 and stride 2, whose taps are means
of its own: 16 products for 36, and no image of full size to write and keep.  Discriminators downsample so since Gulrajani et al.
2017 ("Improved Training of Wasserstein GANs", residual networks).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from genimg_fast.ops import _packed
from genimg_fast.ops._check import HALF_TYPES
from genimg_fast.ops._memory_order import memory_format, to_channels_last
from genimg_fast.ops._registration import register


def resampling_weight(weight: torch.Tensor, pools: bool) -> torch.Tensor:
    """Of a weight [Cout, Cin, 3, 3], in the same memory order, by the native kernels.

    [Cout, Cin, 4, 4] of a convolution where it `pools`, before a mean; else [Cin, Cout, 4, 4] of a transposed one, after an upsampling.

    One of a half type becomes one of float32 on the CPU, whose kernels have no half types.  Where no gradient will be wanted of it,
    it is kept as packed weights are, see `_packed`.
    """
    if torch.is_grad_enabled() and weight.requires_grad:
        _packed.forget([weight])
        return _made_of(weight, pools)
    if weight.is_cuda and not _packed.keeps_on_cuda():
        return _made_of(weight, pools)
    kept = _kept(weight, pools)
    if kept and not weight.is_cuda and not torch.equal(samples(weight), _samples[kept[0]]):
        _packed.forget([weight])
        kept = _kept(weight, pools)
    return kept[0] if kept else _made_of(weight, pools)


def _kept(weight: torch.Tensor, pools: bool) -> list[torch.Tensor]:
    return _packed.keep([weight], [("resampling", pools)], lambda _: [_constant(weight, pools)])


def _made_of(weight: torch.Tensor, pools: bool) -> torch.Tensor:
    if weight.dtype in HALF_TYPES and not weight.is_cuda:
        weight = weight.float()
    made = _Node.apply(weight, pools)
    return to_channels_last(made) if memory_format(weight) is torch.channels_last else made


@torch.inference_mode(False)
@torch.no_grad()
def _constant(weight: torch.Tensor, pools: bool) -> torch.Tensor:
    made = torch.nn.Parameter(_made_of(weight, pools), requires_grad=False)  # which stays packed itself
    if not weight.is_cuda:
        _samples[made] = samples(weight)
    return made


_samples: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""What is kept -> `samples` of the weight that it was made of."""


def samples(weight: torch.Tensor) -> torch.Tensor:
    """One value of each channel and tap at least: they tell of writes through ``weight.data``, which its version does not count."""
    at, reach = _places(weight.shape, weight.stride())
    return weight.detach().as_strided((reach,), (1,)).index_select(0, at)


@functools.lru_cache(maxsize=256)
def _places(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[torch.Tensor, int]:
    """In memory, counted from the weight's first value; and beyond the last one."""
    i = torch.arange(max(*shape, 9), device="cpu")  # whatever the default device is
    index = torch.stack([each % size for each, size in zip((i, i, i // 3, i), shape, strict=True)])
    at = (index * torch.tensor(strides, device="cpu")[:, None]).sum(0)
    return at, int(at.max()) + 1


class _Node(torch.autograd.Function):
    """Not registered with the operator: what torch.library does around one takes longer than the kernel."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, pools: bool) -> torch.Tensor:
        ctx.pools = pools
        return torch.ops.genimg_fast.resampling_weight.default(weight, pools)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Transpose.apply(grad, ctx.pools), None


class _Transpose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, pools: bool) -> torch.Tensor:
        ctx.pools = pools
        return torch.ops.genimg_fast.resampling_weight_grad.default(grad, pools)

    @staticmethod
    def backward(ctx: Any, weight: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Node.apply(weight, ctx.pools), None


def _fake(weight, pools):
    return weight.new_empty((*weight.shape[:2], 4, 4) if pools else (weight.shape[1], weight.shape[0], 4, 4))


def _fake_grad(grad, pools):
    return grad.new_empty((*grad.shape[:2], 3, 3) if pools else (grad.shape[1], grad.shape[0], 3, 3))


register("resampling_weight", _fake)
register("resampling_weight_grad", _fake_grad)

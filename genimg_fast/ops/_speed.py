# SPDX-License-Identifier: MIT
"""Where PyTorch's convolutions are faster than the CPU kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from genimg_fast import _extension
from genimg_fast._block import Block, Geometry
from genimg_fast.ops._memory_order import memory_format

# Thresholds, as measured: work in multiply-adds, pixels over the whole batch.

# A block with less work trains faster in PyTorch: setting up its gradients from Python takes longer than PyTorch's kernels do.  Two
# blocks in a chain are set up together, so half as much in each is enough.
_FEWEST_MULTIPLY_ADDS = 12_000_000

# Up to here, on AVX2, one call of ours in inference beats three of PyTorch's operators at any kernel size: its convolutions are
# not so much faster than plain sums that they make up for the calls and the passes over memory.  On AVX-512 they are, from two fifths on.
_LITTLE_WORK = 50_000_000

# From here on PyTorch trains faster: on AVX2 at kernel 3 with stride 2, and at a transposed convolution whose pixels do not overlap;
# on AVX-512 at the transposed ones alone, from twice as much on.
_MUCH_WORK = 50_000_000

_IMAGE_CHANNELS = 4

# Below this many channels, or twice as many in training, PyTorch is about as fast: neither fills its vectors.
_FEW_CHANNELS = 16

# Up to here PyTorch's preparations take longer than its convolution.
_FEW_PIXELS = 64

# Up to here transforming a large weight of kernel 3 costs more than the products it saves.
_VERY_FEW_PIXELS = 16

# Values.  From here on it shows that PyTorch reorders the weight in each pass, and that our kernels read it where it lies.
_LARGE_WEIGHT = 1 << 19

# Reading a weight takes as long as its products with this many pixels, so fewer pixels cost as much.
_PIXELS_TO_READ_A_WEIGHT = 80

# Pixels from which on the images no longer fit into the caches between two of PyTorch's passes.
_LARGE_BATCH = 1 << 15

# Below this much work, finding out in which order two layers cost less takes longer than it saves.
_WORK_OF_REORDERING = 1 << 20

# Multiply-adds that take as long as reading one value for a mean.
_WORK_OF_A_MEAN = 128

# From here on the allocator takes memory anew from the system at each call, and PyTorch faults it in by small pages, which takes
# longer than filling it.
_FRESH_BYTES = 32 << 20


def slower(block: Block, input_shape: Sequence[int], records: bool, half: bool = False) -> str | None:
    """Why PyTorch's convolution is faster than the CPU kernels for a block.

    From measurements against oneDNN.  What the kernels are made for is kernel 4 or 5 with stride 2, kernel 3 or 4 with stride 1, a
    few output channels, images of one pixel, and large weights on few pixels; in inference, and where there is much work, kernel 3
    with stride 2.  Elsewhere they have plain sums alone, which pay in inference where there is little work.

    Args:
        records: gradients will be wanted.
        half: PyTorch computes in a half type (`replaces_half_type`).
    """
    kernel, stride = tuple(block.weight.shape[2:]), block.stride
    if block.dilation != (1, 1):
        return f"PyTorch is faster at dilation {block.dilation}"
    pixels = _pixels(block, input_shape)
    one_pixel = pixels == input_shape[0] if block.transposed else block.covers(input_shape)
    if half and not one_pixel and _fewest_against_half(block, records) is None:
        return f"PyTorch is faster at kernel {kernel}, stride {stride} in a half type"
    if one_pixel and (max(kernel) > 1 or not records):
        return None
    if _pays_in_training(block, pixels) if records or block.training else _pays_by_one_call(block, pixels):
        return None
    # the weight first: torch.compile makes a graph of its own for each answer about a number of pixels that varies
    fewest = _VERY_FEW_PIXELS if _on_avx2() else 0  # of fewer PyTorch's preparations take longer there
    if (
        records
        and kernel == (3, 3)
        and block.weight.numel() >= _LARGE_WEIGHT // 2
        and fewest <= pixels <= _VERY_FEW_PIXELS
    ):
        return f"PyTorch is faster at kernel {kernel} on {pixels} pixels with so large a weight"
    if _made_for(block, records):
        return None
    if records and max(kernel) > 1 and pixels <= _FEW_PIXELS and block.weight.numel() >= _LARGE_WEIGHT:
        return None
    stays_packed = not records and not block.transposed and max(kernel) > 1
    if stays_packed and (pixels <= _FEW_PIXELS or (kernel, stride) == ((3, 3), (2, 2))):
        return None
    if not block.transposed or records:
        return f"PyTorch is faster at kernel {kernel}, stride {stride}"
    if stride == (1, 1) or (max(kernel) > 4 and pixels >= 512):
        return f"PyTorch is faster at kernel {kernel}, stride {stride} on {pixels} pixels"
    return None


def _on_avx2() -> bool:
    return _extension.cpu_isa() == "avx2"


def _suits_pytorch_alone(block: Block, images: int, pixels: int) -> bool:
    """In training, of a block that is no part of a chain, on AVX2."""
    kernel = tuple(block.weight.shape[2:])
    if images == 1 and _VERY_FEW_PIXELS < pixels <= _FEW_PIXELS:  # one image PyTorch hands to a product of matrices
        return max(kernel) != 4 or block.weight.numel() < _LARGE_WEIGHT
    return kernel == (5, 5) and _FEW_PIXELS < pixels <= 4 * _FEW_PIXELS


def _pays_in_training(block: Block, pixels: int) -> bool:
    """Where PyTorch trains slower though there is much work."""
    shape, work = (tuple(block.weight.shape[2:]), block.stride), block.weight.numel() * pixels
    if shape not in (((2, 2), (2, 2)), ((3, 3), (2, 2))):
        return False
    if block.transposed:
        return work > (_MUCH_WORK if _on_avx2() else 2 * _MUCH_WORK)
    return _on_avx2() and shape[0] == (3, 3) and work > _MUCH_WORK


def _pays_by_one_call(block: Block, pixels: int) -> bool:
    # a weight that is made anew for each call, as by a spectral normalisation, would be packed for each
    if not isinstance(block.weight, torch.nn.Parameter):
        return False
    # what a transposed convolution of few channels does to each pixel fills no vector
    fills_no_vector = block.transposed and min(block.weight.shape[:2]) < _FEW_CHANNELS // 2
    return _is_little_work(block, pixels) and not fills_no_vector


def _is_little_work(block: Block, pixels: int) -> bool:
    # not in torch.compile, which makes a graph of its own for each answer about pixels, and fuses the three operators itself
    most = _LITTLE_WORK if _on_avx2() else _LITTLE_WORK * 2 // 5
    return not torch.compiler.is_compiling() and block.weight.numel() * pixels <= most


def _made_for(block: Block, records: bool) -> bool:
    kernel, stride = tuple(block.weight.shape[2:]), block.stride
    fewest = 2 * _FEW_CHANNELS if records else _FEW_CHANNELS
    if stride == (1, 1):
        in_channels = block.weight.shape[0 if block.transposed else 1]
        makes_images = block.out_channels <= _IMAGE_CHANNELS and in_channels >= _FEW_CHANNELS and max(kernel) > 1
        if makes_images:
            return True
        if block.transposed:
            # elsewhere kernel 4 pays forward on large images alone
            mirrored = kernel == (3, 3) or (kernel == (4, 4) and (records or _on_avx2()))
            return mirrored and min(block.weight.shape[:2]) >= fewest
        return kernel == (3, 3) or (kernel == (4, 4) and in_channels >= fewest)
    if (kernel, stride) == ((5, 5), (2, 2)):
        return not records or max(block.weight.shape[:2]) >= fewest
    return (kernel, stride) == ((4, 4), (2, 2))


def resampling_pays(weight: torch.Tensor, shape: Sequence[int], geometry: Geometry, trains: bool) -> bool:
    """Whether a convolution and a resampling by two are faster as the one convolution that the two are.

    Args:
        weight: of the convolution.
        shape: of what the one convolution is given.
        geometry: of it.
        trains: whether gradients are recorded, or statistics taken of the batch.
    """
    # of fewer channels the doubled image costs less than what a transposed convolution does to each pixel
    if geometry.transposed and weight.shape[1] < _FEW_CHANNELS // 2:
        return False
    if not trains and not torch.compiler.is_compiling():  # which keeps no weight
        return True
    n, _, h, w = shape
    repeats_edge = geometry.transposed and geometry.padding == (3, 3)
    of_edge = 2 * repeats_edge
    pixels = n * (h - of_edge) * (w - of_edge) if geometry.transposed else n * (h // 2) * (w // 2)
    # for fewer pixels the weight and its gradient, of 16 taps for 9, take longer to make than they save
    fewest = (8 if repeats_edge else 4) * _FEW_PIXELS
    least_work = (2 if geometry.transposed else 1) * _FEWEST_MULTIPLY_ADDS
    return pixels >= fewest and weight.numel() * 16 // 9 * pixels >= least_work


def reordering_pays(input: torch.Tensor, weight: Any, groups: int, upsamples: bool) -> bool:
    """Whether a convolution of kernel 1 is faster on the smaller side of a resampling by two, for an image that both take.

    The resampling is then of the channels on the convolution's other side.
    """
    if input.dim() != 4 or input.shape[1] != weight.shape[1] * groups or min(*input.shape, *weight.shape) == 0:
        return False
    n, in_channels, h, w = input.shape
    more = weight.shape[0] - in_channels if upsamples else in_channels - weight.shape[0]
    if more > 0 and (upsamples or weight.numel() < _WORK_OF_A_MEAN * more):
        return False
    return min(h, w) > 1 and weight.numel() * n * h * w >= _WORK_OF_REORDERING


def _fewest_against_half(block: Block, records: bool) -> int | None:
    """How many blocks a chain of such blocks must have to be faster in float32 than PyTorch's, one by one, in a half type; None if no
    chain is."""
    kernel, stride = tuple(block.weight.shape[2:]), block.stride
    if (kernel, stride) == ((4, 4), (2, 2)):
        return 1 if block.transposed or records else 3
    if (kernel, stride) == ((5, 5), (2, 2)) and block.transposed:
        return 2
    if (kernel, stride) == ((3, 3), (1, 1)) and not block.transposed:
        return 2 if records else 3
    return None


def slower_chain(
    input: torch.Tensor, blocks: Sequence[Block], shape: Sequence[int], records: bool, half: bool = False
) -> str | None:
    """Why PyTorch is faster for these blocks in turn, though not for each by itself.

    Args:
        input: of the whole pass, whose memory order the output takes over.
        shape: of the first block's input.
        records, half: as for `slower`.
    """
    enough = [_fewest_against_half(block, records) or 2 for block in blocks]  # 2 of those that make or see one pixel
    if half and len(blocks) < min(enough):
        return "PyTorch is faster in a half type at so few layers in turn"
    first, work, pixels = blocks[0], 0, _pixels(blocks[0], shape)
    kernel = first.weight.shape[2:]
    on_images = not first.transposed and min(first.weight.shape[:2]) <= _IMAGE_CHANNELS and not first.covers(shape)
    for block in blocks:
        fewest = _PIXELS_TO_READ_A_WEIGHT if max(block.weight.shape[2:]) > 1 else 0
        output_shape = block.output_shape(shape)
        # without the pixels around that were put there as padding
        n, _, h, w = shape if block.transposed else output_shape
        multiply_adds = block.weight.numel() * max(n * h * w, fewest)
        in_channels = block.weight.shape[0 if block.transposed else 1]
        # for whose gradients PyTorch prepares as long as we do
        strided = max(block.weight.shape[2:]) > 3 and block.stride != (1, 1) and in_channels > _IMAGE_CHANNELS
        work += max(multiply_adds, _FEWEST_MULTIPLY_ADDS) if strided else multiply_adds
        shape = output_shape
    # batch statistics take the way of a training step, whether gradients are recorded or not
    trains = records or any(block.training for block in blocks)
    if trains and work * len(blocks) < _FEWEST_MULTIPLY_ADDS:
        return "so little work that to prepare for its gradients would take longer"
    if records and len(blocks) == 1 and _on_avx2() and _suits_pytorch_alone(first, shape[0], pixels):
        return f"PyTorch is faster at a lone layer of kernel {tuple(kernel)} on {pixels} pixels"
    lone = len(blocks) == 1 and memory_format(input) is torch.contiguous_format
    few_channels = max(first.weight.shape[:2]) <= _FEW_CHANNELS
    if lone and records and few_channels and kernel == (3, 3) and not (first.transposed or first.training):
        return "a lone layer of few channels: changing the memory order costs more than the kernels save"
    # `shape` is that of the output by now
    if lone and on_images and _loses_by_order(first, pixels, math.prod(shape) * input.element_size(), records):
        return "a lone layer on images: changing the memory order costs more than the kernel saves"
    return None


def _loses_by_order(block: Block, pixels: int, output_bytes: int, records: bool) -> bool:
    """Of a layer on images, by itself and in NCHW: whether to change their order there and back takes longer than its kernel saves."""
    kernel, made_image = tuple(block.weight.shape[2:]), block.out_channels <= _IMAGE_CHANNELS
    if not _on_avx2():
        if records:
            return not made_image and kernel == (3, 3) and pixels < _LARGE_BATCH
        if made_image:
            return max(kernel) == 1 or (max(kernel) < 5 and not _is_little_work(block, pixels))
        return pixels < _LARGE_BATCH and not _is_little_work(block, pixels)
    if made_image:
        return not records and max(kernel) == 1
    if output_bytes >= _FRESH_BYTES:
        return False
    if records:
        return kernel == (3, 3) or (kernel == (4, 4) and not block.normalizes)
    return not (block.normalizes and _is_little_work(block, pixels))


def _pixels(block: Block, input_shape: Sequence[int]) -> int:
    """Of the smaller of input and output, about, in the batch."""
    n, _, h, w = input_shape
    return n * h * w if block.transposed else n * (h // block.stride[0]) * (w // block.stride[1])

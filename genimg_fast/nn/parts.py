# SPDX-License-Identifier: MIT
"""How a run of convolution blocks is cut where that depends on the images it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genimg_fast._block import Geometry, output_size
from genimg_fast.nn.chain import may_resize, resizes
from genimg_fast.nn.layers import BLOCKS, padding_of, takes_batch_statistics
from genimg_fast.nn.norm import parameter
from genimg_fast.nn.steps import Step, convolution_of, is_instance_norm, resize_padding
from genimg_fast.ops._autocast import autocasts
from genimg_fast.ops._memory_order import memory_format


def parts_on(input: torch.Tensor, run: list[Step]) -> list[list[Step]]:
    """A run of convolution blocks, and of what may be part of one, as runs of blocks alone and other steps each by itself.

    On one image, the batch of pix2pix and CycleGAN, an instance normalisation is a batch normalisation, and belongs to the block of
    the convolution before it.  That pays in training alone: what packs a weight once and keeps it knows no statistics of a batch.
    """
    if any(map(_upsamples, run)):
        run = _without_slower_upsamplings(input, run)
    if len(run) == 1 or all(step.kind in BLOCKS for step in run):
        return [run]
    joins = (
        torch.is_grad_enabled()
        and input.dim() == 4
        and input.shape[0] == 1
        and not autocasts(input)
        and memory_format(input) is torch.contiguous_format
    )
    parts: list[list[Step]] = [[]]
    for step in run:
        if step.kind in BLOCKS:
            parts[-1].append(step)
        elif is_instance_norm(step) and joins and parts[-1] and _ends_with_convolution(parts[-1][-1], step):
            before = parts[-1][-1]
            parts[-1][-1] = before._replace(names=before.names + step.names, layers=before.layers + step.layers)
        else:
            parts += [[step], []]
    return [part for part in parts if part]


def _ends_with_convolution(step: Step, norm: Step) -> bool:
    conv = convolution_of(step.layers)
    # of a weight in the other order comes an output in that order, of F.instance_norm none
    in_order = memory_format(conv.weight) is torch.contiguous_format
    return step.layers[-1] is conv and in_order and conv.out_channels == norm.layers[0].num_features


def _upsamples(step: Step) -> bool:
    return step.kind in BLOCKS and convolution_of(step.layers) is not step.layers[0]


def _without_slower_upsamplings(input: torch.Tensor, run: list[Step]) -> list[Step]:
    """With an upsampling as a step of its own where it is not to be one with the convolution after it."""
    may_join = may_resize(input)
    shape: Sequence[int] = input.shape
    steps: list[Step] = []
    for step in run:
        if _upsamples(step) and not (may_join and _resizes(input, shape, step)):
            at = step.layers.index(convolution_of(step.layers))
            steps += [
                Step((name,), None, "", (layer,)) for name, layer in zip(step.names[:at], step.layers, strict=False)
            ]
            steps.append(Step(step.names[at:], "conv2d_bn_act", "", step.layers[at:]))
        else:
            steps.append(step)
        if may_join:
            shape = _output_shape(shape, step)
    return steps


def _resizes(input: torch.Tensor, shape: Sequence[int], step: Step) -> bool:
    conv = convolution_of(step.layers)
    trains = torch.is_grad_enabled() or any(map(takes_batch_statistics, step.layers))
    # else an error should name the convolution's tensors
    return min(_output_shape(shape, step)) > 0 and resizes(
        input, shape, parameter(conv, "weight"), parameter(conv, "bias"), resize_padding(step.layers), trains
    )


def _output_shape(shape: Sequence[int], step: Step) -> Sequence[int]:
    if step.kind not in BLOCKS:
        return shape
    conv = convolution_of(step.layers)
    weight = parameter(conv, "weight")
    assert weight is not None
    if _upsamples(step):
        h, w = resize_padding(step.layers)
        edge = 2 * (h == 3)  # rows, and columns, that are put around first
        size = [2 * (n + edge + 1 - p) for n, p in zip(shape[2:], (h, w), strict=True)]
        return shape[0], weight.shape[0], *size
    geometry = Geometry(conv.transposed, conv.stride, padding_of(conv), conv.output_padding, conv.dilation)
    channels = weight.shape[1] * conv.groups if conv.transposed else weight.shape[0]
    return shape[0], channels, *output_size(geometry, shape, weight.shape)

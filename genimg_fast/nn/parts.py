# SPDX-License-Identifier: MIT
"""How a run of convolution blocks is cut where that depends on the images it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genimg_fast._block import output_size
from genimg_fast.nn.chain import may_resample, resampling_serves
from genimg_fast.nn.layers import BLOCKS, takes_batch_statistics
from genimg_fast.nn.norm import parameter
from genimg_fast.nn.steps import (
    Step,
    convolution_of,
    geometry_of,
    is_instance_norm,
    pad_before,
    plan,
    pools,
    resamples,
    weight_shape,
)
from genimg_fast.ops._autocast import autocasts
from genimg_fast.ops._memory_order import memory_format


def parts_on(input: torch.Tensor, run: list[Step]) -> list[list[Step]]:
    """A run of convolution blocks, and of what may be part of one, as runs of blocks alone and other steps each by itself.

    On one image, the batch of pix2pix and CycleGAN, an instance normalisation is a batch normalisation, and belongs to the block of
    the convolution before it.  That pays in training alone: what packs a weight once and keeps it knows no statistics of a batch.
    """
    if any(map(_resamples, run)):
        run = _without_slower_resamplings(input, run)
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
    return (
        step.layers[-1] is (step.layers[1] if pools(step.layers) else conv)
        and in_order
        and conv.out_channels == norm.layers[0].num_features
    )


def _resamples(step: Step) -> bool:
    return step.kind in BLOCKS and resamples(step.layers)


def _without_slower_resamplings(input: torch.Tensor, run: list[Step]) -> list[Step]:
    """With a resampling as a step of its own where it is not to be one with its convolution."""
    may_join = may_resample(input)
    shape: Sequence[int] = input.shape
    steps: list[Step] = []
    for step in run:
        steps += [step] if not _resamples(step) or (may_join and _joins(input, shape, step)) else _apart(step)
        if may_join and step.kind in BLOCKS:
            shape = _output_shape(shape, step.layers)
    return steps


def _apart(step: Step) -> list[Step]:
    """The resampling of a step, its convolution, and what comes after both."""
    layers = list(zip(step.names, step.layers, strict=True))
    end = 2 if pools(step.layers) else step.layers.index(convolution_of(step.layers))
    apart = [Step((name,), None, "", (layer,)) for name, layer in layers[:end]]
    if pools(step.layers):
        apart[0] = apart[0]._replace(kind="conv2d_bn_act")
    return apart + plan(layers[end:])


def _joins(input: torch.Tensor, shape: Sequence[int], step: Step) -> bool:
    conv = convolution_of(step.layers)
    trains = torch.is_grad_enabled() or any(map(takes_batch_statistics, step.layers))
    # else an error should name the convolution's tensors
    if min(_output_shape(shape, step.layers)) <= 0:
        return False
    weight, bias, given = parameter(conv, "weight"), parameter(conv, "bias"), _padded(shape, step.layers)
    return resampling_serves(input, given, weight, bias, geometry_of(step.layers), trains)


def _padded(shape: Sequence[int], layers: Sequence[Any]) -> Sequence[int]:
    """What the convolution of a step is given: with what it pads with where that is no zeros."""
    pad = pad_before(layers)
    if pad is None:
        return shape
    left, right, top, bottom = pad.args[0]
    return *shape[:2], shape[2] + top + bottom, shape[3] + left + right


def _output_shape(shape: Sequence[int], layers: Sequence[Any]) -> Sequence[int]:
    of_weight, geometry = weight_shape(layers), geometry_of(layers)
    channels = of_weight[1] * convolution_of(layers).groups if geometry.transposed else of_weight[0]
    return shape[0], channels, *output_size(geometry, _padded(shape, layers), of_weight)

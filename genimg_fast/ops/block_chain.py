# SPDX-License-Identifier: MIT
"""Consecutive convolution blocks as one call and, in training, one node of the autograd graph.

Only the raw output of each convolution is kept for backward: the next block normalises and activates it as it reads, forward
and backward.  In inference each weight is packed once for as long as it does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from genimg_fast import _backend
from genimg_fast._block import Block, Geometry
from genimg_fast.ops import _check, _packed
from genimg_fast.ops._convolution import records_gradient, running_updates
from genimg_fast.ops._memory_order import memory_format
from genimg_fast.ops._recorded_chain import recorded_chain
from genimg_fast.ops._registration import recorded_gradients, register, wanted
from genimg_fast.ops.batch_norm_act import update_running_statistics
from genimg_fast.reference import block_chain as reference

_NONE, _BATCH, _FIXED = 0, 1, 2  # Statistics in csrc/ops/block_chain.h
_CODES = 14
"""Of a block: nine of its geometry, its activation and statistics, and whether it has a bias, bn_weight and bn_bias."""


class Description(NamedTuple):
    """Blocks as the native operators take them (Block in csrc/ops/block_chain.h)."""

    parameters: list[torch.Tensor]
    fixed: list[torch.Tensor]
    """Running statistics of the blocks that do not train."""
    codes: list[int]
    numbers: list[float]


def block_chain(input: torch.Tensor, blocks: Sequence[Block], keeps_packed: bool = True) -> torch.Tensor:
    """The blocks in turn, on the native kernels, which must serve all of them: see `nn.chain`.

    Args:
        keeps_packed: in inference, whether packed weights are kept for the next pass.
    """
    description = describe(blocks)
    parameters, fixed, codes, numbers = description
    if not records_gradient(input, *parameters) and not any(block.training for block in blocks):
        packed = _packed.packed_weights(input, blocks, description) if keeps_packed else []
        return torch.ops.genimg_fast.block_chain_inference(input, parameters, fixed, packed, codes, numbers)

    _packed.forget([block.weight for block in blocks])  # what changes with every step is not worth its memory
    if torch.compiler.is_compiling() or _backend.inside_func_transform():
        output, _, statistics = torch.ops.genimg_fast.block_chain_training(input, parameters, fixed, codes, numbers)
    else:
        output, *statistics = _Node.apply(input, *parameters, fixed, codes, numbers)
    for update in running_updates(blocks, input.shape, statistics):
        update_running_statistics(*update)
    return output


def describe(blocks: Sequence[Block]) -> Description:
    parameters: list[torch.Tensor] = []
    fixed: list[torch.Tensor] = []
    codes: list[int] = []
    numbers: list[float] = []
    for block in blocks:
        statistics = _BATCH if block.training else _NONE
        if not block.training and block.running_mean is not None and block.running_var is not None:
            statistics = _FIXED
            fixed += [block.running_mean, block.running_var]
        optional = (block.bias, block.bn_weight, block.bn_bias) if statistics else (block.bias, None, None)
        parameters += [block.weight, *(t for t in optional if t is not None)]
        codes += [
            *block.geometry.codes(),
            _check.ACTIVATIONS[block.activation],
            statistics,
            *(t is not None for t in optional),
        ]
        numbers += [block.eps, block.negative_slope]
    return Description(parameters, fixed, codes, numbers)


def _blocks(parameters, fixed, codes, numbers) -> Iterator[Block]:
    """What `describe` was given, but for running statistics of blocks that train and for momentum."""
    parameters, fixed, numbers = iter(parameters), iter(fixed), iter(numbers)
    for i in range(0, len(codes), _CODES):
        *geometry, activation, statistics, bias, bn_weight, bn_bias = codes[i : i + _CODES]
        transposed, stride, padding, output_padding, dilation = Geometry.of(geometry)
        weight = next(parameters)
        bias, bn_weight, bn_bias = (next(parameters) if given else None for given in (bias, bn_weight, bn_bias))
        mean, var = (next(fixed), next(fixed)) if statistics == _FIXED else (None, None)
        yield Block(
            transposed, weight, bias, mean, var, bn_weight, bn_bias, statistics == _BATCH, 0.0, next(numbers),
            stride, padding, output_padding, dilation, 1, _check.name_of(activation, _check.ACTIVATIONS), next(numbers),
        )  # fmt: skip


def _like(input, shape, format):
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=format)


def _fake_training(input, parameters, fixed, codes, numbers):
    shape, stored, statistics = tuple(input.shape), [], []
    for block in _blocks(parameters, fixed, codes, numbers):
        shape = block.output_shape(shape)
        stored.append(_like(input, shape, torch.channels_last))
        statistics += [input.new_empty(shape[1]) for _ in range(2 if block.training else 0)]
    if not block.training and block.running_mean is None:
        stored.pop()  # the output itself
    return _like(input, shape, memory_format(input)), stored, statistics


def _fake_backward(grad, input, output, parameters, fixed, stored, statistics, codes, numbers, wanted, nchw):
    format = torch.contiguous_format if nchw else torch.channels_last
    grad_input = _like(input, input.shape, format) if wanted[0] else input.new_empty(0)
    grads = [torch.empty_like(p) if want else p.new_empty(0) for p, want in zip(parameters, wanted[1:], strict=True)]
    return grad_input, grads


def _fake_inference(input, parameters, fixed, packed, codes, numbers):
    shape = tuple(input.shape)
    for block in _blocks(parameters, fixed, codes, numbers):
        shape = block.output_shape(shape)
    return _like(input, shape, memory_format(input))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    input, parameters, fixed, ctx.codes, ctx.numbers = inputs
    output, stored, statistics = output
    ctx.mark_non_differentiable(*stored, *statistics)
    ctx.set_materialize_grads(False)
    # The gradient lies as PyTorch's does: users take views of it, and F.instance_norm differentiates wrongly in another order than
    # its input's.  Decided here, since Inductor may hand on the input to backward in another order than it was traced in.
    ctx.nchw = memory_format(input) is torch.contiguous_format
    ctx.counts = [len(parameters), len(fixed), len(stored), len(statistics)]
    # The output is kept only where backward reads an activation's branch or value off it: after no batch normalisation.
    # Elsewhere it may be changed in place, as the output of a convolution or a batch normalisation may.
    activation, statistics_of_last, *_ = ctx.codes[-5:]
    kept = [output] if statistics_of_last == _NONE and activation != _check.ACTIVATIONS["none"] else []
    ctx.save_for_backward(input, *parameters, *fixed, *stored, *statistics, *kept)


def _backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    input, *saved = ctx.saved_tensors
    saved = iter(saved)
    parameters, fixed, stored, statistics = ([next(saved) for _ in range(count)] for count in ctx.counts)
    if grad is None:
        return None, [None] * len(parameters), [None] * len(fixed), None, None
    output = next(saved, grad)  # else the gradient, of which nothing is read
    wants = wanted(ctx)[: 1 + len(parameters)]
    recorded = torch.is_grad_enabled()
    # torch.autograd.grad(is_grads_batched=True) stacks gradients in a way of its own, which operators on lists do not take
    is_stacked = torch._C._functorch.is_legacy_batchedtensor(grad)
    if recorded or is_stacked:  # use formulas with derivatives

        def chain(input: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
            blocks = list(_blocks(parameters, fixed, ctx.codes, ctx.numbers))
            if _backend.stacks(grad):
                return reference.block_chain(input, blocks)
            return recorded_chain(input, blocks, [*stored, output], statistics)

        grads = recorded_gradients(chain, (input, *parameters), wants, grad, create_graph=recorded)
    else:
        grad_input, grad_parameters = torch.ops.genimg_fast.block_chain_backward(
            grad, input, output, parameters, fixed, stored, statistics, ctx.codes,
            ctx.numbers, [int(w) for w in wants], ctx.nchw,
        )  # fmt: skip
        grads = [g if want else None for g, want in zip((grad_input, *grad_parameters), wants, strict=True)]
    return grads[0], grads[1:], [None] * len(fixed), None, None


class _Node(torch.autograd.Function):
    """The operator `block_chain_training` in a graph that is run and not traced: what torch.library does around an operator on
    lists takes longer than a small chain."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
        *parameters, fixed, codes, numbers = arguments
        inputs = input, parameters, fixed, codes, numbers
        with torch._C._AutoDispatchBelowAutograd():
            output, stored, statistics = torch.ops.genimg_fast.block_chain_training.default(*inputs)
        _setup_context(ctx, inputs, (output, stored, statistics))
        return output, *statistics

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, *of_statistics: Any) -> tuple[torch.Tensor | None, ...]:
        of_input, of_parameters, *_ = _backward(ctx, grad)
        return of_input, *of_parameters, None, None, None


register("block_chain_training", _fake_training, backward=_backward, setup_context=_setup_context)
register("block_chain_backward", _fake_backward)
register("block_chain_inference", _fake_inference)

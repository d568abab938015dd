# SPDX-License-Identifier: MIT
"""Consecutive convolution blocks on CUDA, in a pass that records gradients, as one node of the autograd graph.

What `block_chain` is on the CPU.  Of each block the raw output of its convolution is kept for backward, which makes the activation
that the next convolution read anew, by one pass: about half of the memory.  And between the blocks nothing is called that autograd
must hear of, which takes longer on the host than a kernel does on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genimg_fast._block import Block
from genimg_fast.ops import _check, _packed
from genimg_fast.ops import convolution_block as kernels
from genimg_fast.ops._convolution import activate_backward_from_output
from genimg_fast.ops._registration import recorded_gradients, wanted
from genimg_fast.reference import block_chain as reference

_TENSORS = ("weight", "bias", "running_mean", "running_var", "bn_weight", "bn_bias")
_PARAMETERS = ("weight", "bias", "bn_weight", "bn_bias")


def convolution_chain(input: torch.Tensor, blocks: Sequence[Block], nchw: bool = False) -> torch.Tensor:
    """The blocks in turn, on the CUDA kernels, which must serve all of them: see `nn.chain`.

    Args:
        input: channels_last.
        nchw: the output in this order where a last block without batch normalisation can write it.
    """
    _packed.forget([block.weight for block in blocks])  # what changes with every step is not worth its memory
    parameters = [t for block in blocks for t in _given(block, _PARAMETERS)]
    return _Node.apply(input, tuple(blocks), nchw, *parameters)


def _given(block: Block, names: Sequence[str]) -> list[torch.Tensor]:
    return [t for t in (getattr(block, name) for name in names) if t is not None]


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, blocks: tuple[Block, ...], nchw: bool, *parameters: torch.Tensor) -> Any:
        ctx.tensor_cores = [kernels.tensor_cores(input, block.weight, block.transposed) for block in blocks]
        stored: list[torch.Tensor | None] = []
        statistics: list[torch.Tensor] = []
        x = input
        with torch._C._AutoDispatchBelowAutograd():
            for i, block in enumerate(blocks):
                is_last = i + 1 == len(blocks)
                x, kept, moments = _forward(x, block, ctx.tensor_cores[i], nchw and is_last)
                is_plain = is_last and kept is x and block.activation == "none"  # its gradient is the output's
                stored.append(None if is_plain else kept)
                statistics += moments
        # A block in training does not read its running statistics, and they have changed: they are not saved.
        blocks = tuple(b._replace(running_mean=None, running_var=None) if b.training else b for b in blocks)
        ctx.set_materialize_grads(False)
        # Without their tensors, which are saved as such.
        ctx.blocks = [block._replace(**dict.fromkeys(_TENSORS)) for block in blocks]  # type: ignore[arg-type]
        ctx.present = [[getattr(block, name) is not None for name in _TENSORS] for block in blocks]
        ctx.counts = [sum(map(sum, ctx.present)), len(stored)]
        ctx.save_for_backward(input, *(t for block in blocks for t in _given(block, _TENSORS)), *stored, *statistics)
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        input, *saved = ctx.saved_tensors
        tensors, (fixed, stored_end) = iter(saved), (ctx.counts[0], sum(ctx.counts))
        blocks = [
            block._replace(**{name: next(tensors) for name, given in zip(_TENSORS, present, strict=True) if given})
            for block, present in zip(ctx.blocks, ctx.present, strict=True)
        ]
        stored, statistics = saved[fixed:stored_end], iter(saved[stored_end:])
        wants_input, _, _, *wants_parameters = wanted(ctx)
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        if torch.is_grad_enabled():
            return _recorded_backward(grad, input, blocks, [wants_input, *wants_parameters])
        moments = [
            (next(statistics), next(statistics)) if b.training else (b.running_mean, b.running_var) for b in blocks
        ]
        of_parameters = iter(wants_parameters)
        wants = [{name: next(of_parameters) for name in _PARAMETERS if getattr(b, name) is not None} for b in blocks]
        # Down to the first block that anything is wanted of.
        first = next((i for i, want in enumerate(wants) if any(want.values())), len(blocks)) if not wants_input else 0
        gradients: list[tuple[torch.Tensor | None, ...]] = []
        flowing: torch.Tensor | None = grad
        with torch._C._AutoDispatchBelowAutograd():
            for i in reversed(range(len(blocks))):
                if i < first or flowing is None:
                    gradients.append((None,) * len(wants[i]))
                    continue
                raw, bn = _backward_of_epilogue(flowing, blocks[i], stored[i], *moments[i])
                read = stored[i - 1] if i else input  # of the right shape, if no more of it is asked for
                if i and wants[i]["weight"]:
                    read = _activated(blocks[i - 1], stored[i - 1], *moments[i - 1])
                of_input, of_weight, of_bias = kernels.convolution_backward(
                    raw, read, blocks[i].weight, blocks[i].bias, blocks[i].geometry,
                    (wants_input if i == 0 else i > first, wants[i]["weight"], wants[i].get("bias", False)),
                    *ctx.tensor_cores[i],
                )  # fmt: skip
                flowing = of_input
                found = {"weight": of_weight, "bias": of_bias, **bn}
                gradients.append(tuple(found[name] if want else None for name, want in wants[i].items()))
        return flowing if wants_input else None, None, None, *(g for block in reversed(gradients) for g in block)


def _forward(
    x: torch.Tensor, block: Block, tensor_cores: tuple[int, int], nchw: bool
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """The output of a block, what backward needs of it, and the batch's mean and variance."""
    codes, code = block.geometry.codes(), _check.ACTIVATIONS[block.activation]
    if block.training:
        output, raw, mean, var = torch.ops.genimg_fast.convolution_block_training_(
            x, block.weight, block.bias, block.bn_weight, block.bn_bias, block.running_mean, block.running_var,
            block.momentum, block.eps, codes, code, block.negative_slope, *tensor_cores,
        )  # fmt: skip
        return output, raw, (mean, var)
    convolution = (x, block.weight, None, block.bias, None, None, None, None, 0.0, codes)
    if block.running_mean is None or block.running_var is None:
        output = torch.ops.genimg_fast.convolution_block(
            *convolution, code, block.negative_slope, *tensor_cores, not nchw
        )
        return output, output, ()
    raw = torch.ops.genimg_fast.convolution_block(*convolution, 0, 0.0, *tensor_cores, True)
    return _activated(block, raw, block.running_mean, block.running_var), raw, ()


def _activated(block: Block, stored: torch.Tensor, mean: Any, var: Any) -> torch.Tensor:
    """The output of a block from what is kept of it: the bits that the next one read in forward."""
    if mean is None:
        return stored
    return torch.ops.genimg_fast.batch_norm_act_inference(
        stored, mean, var, block.bn_weight, block.bn_bias, block.eps, _check.ACTIVATIONS[block.activation],
        block.negative_slope,
    )  # fmt: skip


def _backward_of_epilogue(
    grad: torch.Tensor, block: Block, stored: torch.Tensor | None, mean: Any, var: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The gradients of the raw output of the convolution and of bn_weight and bn_bias."""
    if mean is None:
        if stored is None:
            return grad, {}
        return activate_backward_from_output(grad, stored, block.activation, block.negative_slope), {}
    raw, bn_weight, bn_bias = torch.ops.genimg_fast.batch_norm_act_backward(
        grad, stored, mean, var, block.bn_weight, block.bn_bias, block.eps, _check.ACTIVATIONS[block.activation],
        block.negative_slope, block.training,
    )  # fmt: skip
    return raw, {"bn_weight": bn_weight, "bn_bias": bn_bias}


def _recorded_backward(
    grad: torch.Tensor, input: torch.Tensor, blocks: Sequence[Block], wants: Sequence[bool]
) -> tuple[torch.Tensor | None, ...]:
    """By formulas with derivatives, since the backward is itself recorded (create_graph=True)."""

    def chain(input: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        of_blocks = iter(parameters)
        names = [[name for name in _PARAMETERS if getattr(block, name) is not None] for block in blocks]
        return reference.block_chain(
            input,
            [b._replace(**{name: next(of_blocks) for name in n}) for b, n in zip(blocks, names, strict=True)],  # type: ignore[arg-type]
        )

    parameters = [t for block in blocks for t in _given(block, _PARAMETERS)]
    of_input, *of_parameters = recorded_gradients(chain, (input, *parameters), wants, grad)
    return of_input, None, None, *of_parameters

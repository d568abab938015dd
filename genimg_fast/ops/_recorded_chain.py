# SPDX-License-Identifier: MIT
"""A chain of blocks that backward records, so that it can be differentiated again (create_graph=True).

It is the graph that the forward pass did not make, made of what that pass kept: no convolution is computed again.  The derivatives
of a convolution, to any order, are convolutions and weight gradients, and run on the CPU kernels as in a backward that is not
recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from genimg_fast import _backend
from genimg_fast._block import Block
from genimg_fast.ops._convolution import activate_backward_from_output
from genimg_fast.ops._memory_order import memory_format, to_channels_last
from genimg_fast.ops._registration import wanted
from genimg_fast.reference.activation import activate
from genimg_fast.reference.batch_norm_act import batch_norm_act_backward

_NOTHING_ELSE = [0] * 5  # no activation, no statistics, no bias, bn_weight and bn_bias


class _Layer(NamedTuple):
    """A convolution but for its tensors."""

    block: Block
    codes: list[int]
    numbers: list[float]
    """Both as csrc/ops/block_chain.h takes them, without bias, normalisation and activation."""
    input_shape: torch.Size
    weight_shape: torch.Size
    input_format: torch.memory_format
    output_format: torch.memory_format


def recorded_chain(
    input: torch.Tensor,
    blocks: Sequence[Block],
    stored: Sequence[torch.Tensor],
    statistics: Sequence[torch.Tensor],
) -> torch.Tensor:
    """The output of the blocks, with a graph.

    Args:
        stored: of each block, what its convolution made: raw if batch normalisation follows, else activated.  The output of the last
            is not read where it has neither.
        statistics: mean and variance of the batch, of each block in training.
    """
    moments_of_batch = iter(statistics)
    x = input
    for i, block in enumerate(blocks):
        layer = _Layer(
            block._replace(weight=None, bias=None, bn_weight=None, bn_bias=None),  # type: ignore[arg-type]
            [*block.geometry.codes(), *_NOTHING_ELSE], [0.0, 0.0], x.shape, block.weight.shape,
            memory_format(x), memory_format(input if i + 1 == len(blocks) else stored[i]),
        )  # fmt: skip
        x = _Known.apply(x, block.weight, block.bias, layer, (stored[i],))
        if block.normalizes:
            mean, var = block.running_mean, block.running_var
            if block.training:
                mean, var = next(moments_of_batch), next(moments_of_batch)
            x = _Normalization.apply(x, block.bn_weight, block.bn_bias, mean, var, block.eps, block.training)
            x = activate(x, block.activation, block.negative_slope)
    return x


class _Known(torch.autograd.Function):
    """A convolution, and activation where it is not normalised first, whose result is known."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, layer: _Layer, result: tuple[torch.Tensor]) -> Any:
        output = result[0].detach()
        ctx.layer = layer
        ctx.save_for_backward(x, weight, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, output = ctx.saved_tensors
        block = ctx.layer.block
        if not block.normalizes:
            if block.activation in ("relu", "leaky_relu"):  # which have no second derivative
                output = output.detach()
            grad = activate_backward_from_output(grad, output, block.activation, block.negative_slope)
        wants_x, wants_weight, wants_bias, *_ = wanted(ctx)
        return (
            _product("x", ctx.layer, None, weight, grad) if wants_x else None,
            _product("weight", ctx.layer, x, None, grad) if wants_weight else None,
            grad.sum((0, 2, 3)) if wants_bias else None,
            None,
            None,
        )


def _product(asked: str, layer: _Layer, *given: torch.Tensor | None) -> torch.Tensor:
    return (_by_pytorch if _backend.stacks(*given) else _Product.apply)(asked, layer, *given)


class _Product(torch.autograd.Function):
    """The derivative of s = (grad * convolution(x, weight)).sum() by one of grad, x and weight, which is asked for and not given.

    s is linear in each of the three: ds/dgrad is the convolution, ds/dx its adjoint, ds/dweight the weight gradient.  Derivatives of
    these are derivatives of s again, with the gradient from above in the place of what was asked for.
    """

    @staticmethod
    def forward(ctx: Any, asked: str, layer: _Layer, x: Any, weight: Any, grad: Any) -> torch.Tensor:
        ctx.asked, ctx.layer = asked, layer
        ctx.save_for_backward(x, weight, grad)
        return _natively(asked, layer, x, weight, grad)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        given = dict(zip(("x", "weight", "grad"), ctx.saved_tensors, strict=True))
        given[ctx.asked] = upstream
        gradients = dict.fromkeys(given)
        for name, wants in zip(given, wanted(ctx)[2:], strict=True):
            if wants:
                gradients[name] = _product(name, ctx.layer, *(None if n == name else t for n, t in given.items()))
        return None, None, *gradients.values()


def _natively(asked: str, layer: _Layer, x: Any, weight: Any, grad: Any) -> torch.Tensor:
    codes, numbers = layer.codes, layer.numbers
    if asked == "grad":
        output = torch.ops.genimg_fast.block_chain_inference(to_channels_last(x), [weight], [], [], codes, numbers)
        return output.contiguous(memory_format=layer.output_format)
    # of what is asked for, only the shape is read
    if x is None:
        x = torch.empty(layer.input_shape, dtype=grad.dtype, memory_format=torch.channels_last)
    if weight is None:
        weight = grad.new_empty(layer.weight_shape)
    grad_x, (grad_weight,) = torch.ops.genimg_fast.block_chain_backward(
        grad, x, grad, [weight], [], [], [], codes, numbers, [int(asked == "x"), int(asked == "weight")],
        layer.input_format is torch.contiguous_format,
    )  # fmt: skip
    return grad_x if asked == "x" else grad_weight


def _by_pytorch(asked: str, layer: _Layer, x: Any, weight: Any, grad: Any) -> torch.Tensor:
    block = layer.block
    if asked == "grad":
        return block.geometry.convolve(x, weight, None)
    x = grad.new_empty(layer.input_shape) if x is None else x
    weight = grad.new_empty(layer.weight_shape) if weight is None else weight
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, block.stride, block.padding, block.dilation, block.transposed, block.output_padding, 1,
        [asked == "x", asked == "weight", False],
    )  # fmt: skip
    return grad_x if asked == "x" else grad_weight


class _Normalization(torch.autograd.Function):
    """Batch normalisation by moments that are known: those of the batch in training, else constants."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float, training: bool) -> Any:
        ctx.eps, ctx.training, ctx.has_bias = eps, training, bias is not None
        ctx.save_for_backward(x, weight, mean, var)
        return torch.ops.genimg_fast.batch_norm_act_inference(x, mean, var, weight, bias, eps, 0, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, mean, var = ctx.saved_tensors
        if _backend.stacks(grad):
            grads = batch_norm_act_backward(grad, x, mean, var, weight, None, ctx.eps, "none", 0.0, ctx.training)
        else:
            grads = _NormalizationGradients.apply(grad, x, weight, mean, var, ctx.eps, ctx.training)
        present = (True, weight is not None, ctx.has_bias)
        return *(g if given else None for g, given in zip(grads, present, strict=True)), None, None, None, None


class _NormalizationGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Any, x: Any, weight: Any, mean: Any, var: Any, eps: float, training: bool) -> Any:
        ctx.eps, ctx.training = eps, training
        ctx.save_for_backward(grad, x, weight, mean, var)
        return torch.ops.genimg_fast.batch_norm_act_backward(grad, x, mean, var, weight, None, eps, 0, 0.0, training)

    @staticmethod
    def backward(ctx: Any, of_x: torch.Tensor, of_weight: torch.Tensor, of_bias: torch.Tensor) -> Any:
        """With n values a channel, normalized = (x - mean) * inverse_std and scale = weight * inverse_std, forward gave

            grad_x      = scale * (grad - (sum(grad) + normalized * sum(grad * normalized)) / n),
            grad_weight = sum(grad * normalized) and grad_bias = sum(grad),

        in inference without the sums in grad_x.  Each derivative of <of_x, grad_x> + <of_weight, grad_weight> + <of_bias, grad_bias> is
        a sum of of_x, grad and normalized, times numbers of each channel.
        """
        grad, x, weight, mean, var = ctx.saved_tensors
        u, g, x = (t.movedim(1, -1).reshape(-1, t.shape[1]) for t in (of_x, grad, x))
        n = max(len(x), 1)
        if ctx.training and not len(x):  # NaN, from which no gradient of theirs, which is zero, would come back
            mean, var = torch.zeros_like(mean), torch.ones_like(var)
        elif ctx.training and torch.is_grad_enabled():
            var, mean = torch.var_mean(x, 0, correction=0)
        inverse_std = (var + ctx.eps).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight
        normalized = (x - mean) * inverse_std
        sum_u_g = (u * g).sum(0)
        if ctx.training:
            mean_u, sum_g = u.sum(0) / n, g.sum(0)
            mean_u_normalized, sum_g_normalized = (u * normalized).sum(0) / n, (g * normalized).sum(0)
            sum_u_g = sum_u_g - mean_u * sum_g - mean_u_normalized * sum_g_normalized
            by_normalized, by_u = of_weight - scale * mean_u_normalized, -scale * sum_g_normalized / n
            # of normalized: by_u * u + by_normalized * g, which leads on to x as in forward
            mean_sum = by_u * mean_u + by_normalized * sum_g / n
            mean_product = by_u * mean_u_normalized + by_normalized * sum_g_normalized / n
            for_grad = scale * u + by_normalized * normalized + (of_bias - scale * mean_u)
            for_x = (
                (inverse_std * by_u) * u
                + (inverse_std * by_normalized) * g
                - (inverse_std * mean_product + scale * inverse_std * sum_u_g / n) * normalized
                - inverse_std * mean_sum
            )
        else:
            for_grad = scale * u + of_weight * normalized + of_bias
            for_x = (inverse_std * of_weight) * g
        rows = of_x.movedim(1, -1).shape
        for_grad, for_x = (t.view(rows).movedim(-1, 1) for t in (for_grad, for_x))
        return for_grad, for_x, None if weight is None else inverse_std * sum_u_g, None, None, None, None

# SPDX-License-Identifier: MIT
"""activation(batch_norm(input)) with the statistics of all processes: the stages of batch_norm_act with a collective between.

The collectives do not depend on the backend.  Each process chooses its backend by its own input, and if the choice changed
the collective, processes would wait for each other for ever.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from genimg_fast import _backend
from genimg_fast.ops import _check
from genimg_fast.ops._registration import recorded_gradients
from genimg_fast.ops.batch_norm_act import batch_norm_act, check_arguments, uncounted
from genimg_fast.reference import sync_batch_norm_act as reference
from genimg_fast.reference.batch_norm_act import GradientTerms


def sync_batch_norm_act(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.01,
    process_group: Any = None,
) -> torch.Tensor:
    op = "sync_batch_norm_act"
    processes = process_count(process_group)
    if processes < 2:
        return batch_norm_act(
            input, running_mean, running_var, weight, bias, training=True, momentum=momentum, eps=eps,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
    check_arguments(op, input, running_mean, running_var, weight, bias, training=True)
    _check.normalization(op, True, momentum, eps)
    _check.activation(op, activation, negative_slope)
    if _backend.inside_func_transform():
        raise RuntimeError(
            f"{op}: the statistics are those of {processes} processes, and neither transforms of torch.func nor forward-mode "
            "AD go through what these say to each other; use BatchNorm, or eval()"
        )
    native = _backend.use_native(op, input, running_mean, running_var, weight, bias)
    output, mean, var, count = _SyncBatchNormAct.apply(
        input, weight, bias, eps, activation, negative_slope, native, process_group or dist.group.WORLD
    )
    if running_mean is not None and running_var is not None:
        _update_running_statistics(running_mean, running_var, mean, var, count, momentum)
    return output


def process_count(process_group: Any) -> int:
    """Of the group, or of all processes if it is None; 1 where no process group is initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(process_group or dist.group.WORLD)


def _update_running_statistics(running_mean, running_var, mean, var, count, momentum):
    """As F.batch_norm does, but the count, which lies on the device, is not waited for."""
    unbiased = var * (count / (count - 1).clamp(min=1)).to(var.dtype)
    step = momentum * (count > 0).to(var.dtype)  # no values, no step
    with torch.no_grad():
        uncounted(running_mean).add_((mean - running_mean) * step)
        uncounted(running_var).add_((unbiased - running_var) * step)


class _SyncBatchNormAct(torch.autograd.Function):
    """One collective forward, one backward; weight and bias get the gradients of this process, as in torch."""

    @staticmethod
    def forward(ctx, input, weight, bias, eps, activation, negative_slope, native, group):
        mean, var, count = _joined_statistics(input, native, group)
        if native:
            code = _check.ACTIVATIONS[activation]
            output = torch.ops.genimg_fast.batch_norm_act_inference(
                input, mean, var, weight, bias, eps, code, negative_slope
            )
        else:
            output = reference.normalize_act(input, mean, var, weight, bias, eps, activation, negative_slope)
        ctx.save_for_backward(input, weight, bias, mean, var, count)
        ctx.eps, ctx.activation, ctx.negative_slope, ctx.native, ctx.group = (
            eps, activation, negative_slope, native, group,
        )  # fmt: skip
        ctx.mark_non_differentiable(mean, var, count)  # they only feed the running statistics
        ctx.set_materialize_grads(False)
        return output, mean, var, count

    @staticmethod
    def backward(ctx, grad, *_):
        input, weight, bias, mean, var, count = ctx.saved_tensors
        if grad is None:  # nothing here depends on the output, but the other processes wait
            grad = torch.zeros_like(input)
        if torch.is_grad_enabled():  # the backward is itself recorded (create_graph=True)
            return *_recorded_gradients(ctx, grad, input, weight, bias), *[None] * 5
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        terms = (_NativeTerms if ctx.native else GradientTerms).of(
            grad, input, mean, var, weight, bias, ctx.eps, ctx.activation, ctx.negative_slope
        )
        grad_weight, grad_bias = terms.sums()
        grad_input = None
        if needs_input:
            joined = torch.stack([grad_weight, grad_bias])
            dist.all_reduce(joined, group=ctx.group)
            mean_grad_weight, mean_grad_bias = joined / count
            grad_input = terms.grad_input((mean_grad_weight, mean_grad_bias)).to(input.dtype)
        return (
            grad_input,
            grad_weight.to(weight.dtype) if needs_weight else None,
            grad_bias.to(bias.dtype) if needs_bias else None,
            *[None] * 5,
        )


def _joined_statistics(
    input: torch.Tensor, native: bool, group: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, biased variance and number of the values of all processes."""
    count, channels = reference.values_per_channel(input), input.shape[1]
    if count == 0:  # what has no mean still has a part in the collective
        mean, var = input.new_zeros(2, channels, dtype=torch.float64)
    else:
        mean, var = torch.ops.genimg_fast.batch_norm_act_statistics(input) if native else reference.statistics(input)
    mine = torch.cat([mean, var, mean.new_full((1,), count)])
    of_all = mine.new_empty(dist.get_world_size(group), len(mine))
    dist.all_gather(list(of_all.unbind()), mine, group=group)
    means, variances, counts = of_all.split([channels, channels, 1], dim=1)
    total, mean, var = reference.join(counts, means, variances)
    dtype = reference.statistics_dtype(input)
    return mean.to(dtype), var.to(dtype), total


class _NativeTerms(NamedTuple):
    """The `GradientTerms` of the kernels, which make them anew in each pass."""

    arguments: tuple[Any, ...]

    @staticmethod
    def of(grad, input, mean, var, weight, bias, eps, activation, negative_slope) -> _NativeTerms:
        return _NativeTerms((grad, input, mean, var, weight, bias, eps, _check.ACTIVATIONS[activation], negative_slope))

    def sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.genimg_fast.batch_norm_act_gradient_sums(*self.arguments)

    def grad_input(self, means: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.ops.genimg_fast.batch_norm_act_gradient_input(*self.arguments, *means)


def _recorded_gradients(ctx, grad, input, weight, bias):
    """Of input, weight and bias, from formulas with derivatives."""

    def all_reduce(t: torch.Tensor) -> torch.Tensor:
        return _AllReduce.apply(t, ctx.group)

    def function(input, weight, bias):
        return reference.sync_batch_norm_act(
            input, weight, bias, ctx.eps, ctx.activation, ctx.negative_slope, all_reduce
        )

    return recorded_gradients(function, (input, weight, bias), ctx.needs_input_grad[:3], grad)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes.  Each of them has a part in all results, so the gradient is that of their sum."""

    @staticmethod
    def forward(ctx, input, group):
        ctx.group = group
        output = input.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(output, group=group)
        return output

    @staticmethod
    def backward(ctx, grad):
        return _AllReduce.apply(grad, ctx.group), None

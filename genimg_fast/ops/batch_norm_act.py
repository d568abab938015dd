# SPDX-License-Identifier: MIT
"""activation(batch_norm(input)): chooses the backend, updates the running statistics and ties the native ops to autograd."""

from __future__ import annotations

import math

import torch

from genimg_fast import _backend
from genimg_fast.ops import _check
from genimg_fast.ops._memory_order import memory_format
from genimg_fast.ops._registration import register, why_not_differentiable
from genimg_fast.reference import batch_norm_act as reference

# On the CPU: elements on which the kernels save as much time, in a training step or in inference, as it takes to get to
# them from Python.
_WORTH_A_KERNEL, _WORTH_A_KERNEL_IN_INFERENCE = 3 << 16, 1 << 19


def batch_norm_act(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    # No autocast rule: like F.batch_norm, it runs in input's dtype.
    op = "batch_norm_act"
    check_arguments(op, input, running_mean, running_var, weight, bias, training)
    _check.normalization(op, training, momentum, eps)
    _check.activation(op, activation, negative_slope)
    if training and _values_per_channel(input) == 1:
        raise ValueError(
            f"{op}: Expected more than 1 value per channel when training, got input size {tuple(input.shape)}"
        )
    unless = why_not_differentiable(running_mean=running_mean, running_var=running_var)
    if not _backend.use_native(
        op, input, running_mean, running_var, weight, bias, unless=unless,
        slower=lambda: _why_slower(input, training, activation),
    ):  # fmt: skip
        return reference.batch_norm_act(
            input, running_mean, running_var, weight, bias, training=training, momentum=momentum, eps=eps,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
    code = _check.ACTIVATIONS[activation]
    if not training:
        return torch.ops.genimg_fast.batch_norm_act_inference(
            input, running_mean, running_var, weight, bias, eps, code, negative_slope
        )
    output, mean, var = torch.ops.genimg_fast.batch_norm_act_training(input, weight, bias, eps, code, negative_slope)
    if running_mean is not None and running_var is not None:
        update_running_statistics(running_mean, running_var, mean, var, _values_per_channel(input), momentum)
    return output


def update_running_statistics(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    count: int,
    momentum: float,
) -> None:
    """What F.batch_norm does to its running statistics, given the batch's mean and biased variance over `count` values."""
    if count == 0:
        return
    if _backend.inside_func_transform() and _backend.is_batched(mean) and not _backend.is_batched(running_mean):
        raise RuntimeError(
            "batch_norm_act: under torch.vmap each example has its own running_mean and running_var: batch them too, or "
            "give none (track_running_stats=False)"
        )
    if mean.is_cuda and _one_launch_moves(running_mean, running_var, mean):
        torch.ops.genimg_fast.batch_norm_act_move_statistics_(
            running_mean, running_var, mean, var, momentum, count / (count - 1)
        )
        return
    with torch.no_grad():
        _move_towards(uncounted(running_mean), mean, momentum, 1.0)
        _move_towards(uncounted(running_var), var, momentum, count / (count - 1))


def uncounted(running: torch.Tensor) -> torch.Tensor:
    """The same memory, written to as F.batch_norm does: without advancing the version.

    Where PyTorch served an earlier pass of the layer, as on a smaller image, it saved the tensor and wants it unchanged.
    """
    return running if torch.compiler.is_compiling() or _backend.inside_func_transform() else running.data


def _one_launch_moves(running_mean: torch.Tensor, running_var: torch.Tensor, mean: torch.Tensor) -> bool:
    """In the place of PyTorch's four to six.  Not where others record operators, which would have to be told of writes."""
    if torch.compiler.is_compiling() or _backend.inside_func_transform() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return mean.dtype == torch.float32 and all(
        type(t) is torch.Tensor and t.is_contiguous() and t.device == mean.device for t in (running_mean, running_var)
    )


def _move_towards(running: torch.Tensor, batch: torch.Tensor, momentum: float, scale: float) -> None:
    if running.dtype == batch.dtype:
        running.mul_(1 - momentum).add_(batch, alpha=momentum * scale)
    else:  # buffers of a half type: computed in float32 and rounded once, as F.batch_norm does
        running.copy_(torch.add(batch * (momentum * scale), running, alpha=1 - momentum))


def is_worth_a_kernel(count: int, training: bool) -> bool:
    """Whether that many elements are."""
    return count >= (_WORTH_A_KERNEL if training else _WORTH_A_KERNEL_IN_INFERENCE)


def _why_slower(input: torch.Tensor, training: bool, activation: str) -> str | None:
    if input.device.type != "cpu":
        return None
    if not training and activation == "none":
        return "a fixed scale and shift alone, which is one pass in PyTorch too"
    if not is_worth_a_kernel(input.numel(), training):
        least = _WORTH_A_KERNEL if training else _WORTH_A_KERNEL_IN_INFERENCE
        return f"fewer than {least} elements, for which calling PyTorch's own operators is quicker"
    plane = math.prod(input.shape[2:])
    if 1 < plane < 16 and input.stride(1) == plane:
        return "planes of fewer than 16 elements, which do not fill a vector (channels_last would)"
    return None


def _values_per_channel(input: torch.Tensor) -> int:
    return input.shape[0] * math.prod(input.shape[2:])


def check_arguments(op, input, running_mean, running_var, weight, bias, training):
    per_channel = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    _check.tensor(op, input=input, **per_channel)
    if input.dim() < 2:
        raise ValueError(f"{op}: input must be (N, C, ...), got shape {tuple(input.shape)}")
    for name, value in per_channel.items():
        _check.shape(op, name, value, (input.shape[1],), "one value a channel")
    _check.dtype_or_float32(op, input, **per_channel)
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{op}: running_mean and running_var must be given together or not at all")
    if not training and running_mean is None:
        raise ValueError(f"{op}: running_mean and running_var must be given when not training")


def _new_channels(input):
    dtype = torch.float32 if input.dtype in _check.HALF_TYPES else input.dtype
    return input.new_empty(input.shape[1], dtype=dtype)


def _new_output(input):
    """In the memory order that F.batch_norm returns."""
    if input.is_contiguous() or (input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)):
        return torch.empty_like(input)
    return torch.empty_like(input, memory_format=torch._prims_common.suggest_memory_format(input))


def _fake_inference(input, mean, var, weight, bias, eps, activation, negative_slope):
    return _new_output(input)


def _fake_training(input, weight, bias, eps, activation, negative_slope):
    return _new_output(input), _new_channels(input), _new_channels(input)


def _fake_backward(grad, input, mean, var, weight, bias, eps, activation, negative_slope, training):
    of_parameters = (_new_channels(input) if t is None else torch.empty_like(t) for t in (weight, bias))
    return _new_output(input), *of_parameters


def _fake_statistics(input):
    mean = input.new_empty(input.shape[1], dtype=torch.float64)
    return mean, torch.empty_like(mean)


def _fake_gradient_sums(grad, input, mean, var, weight, bias, eps, activation, negative_slope):
    return _new_channels(input), _new_channels(input)


def _fake_gradient_input(grad, input, *_):
    return _new_output(input)


def _gradients(ctx, grad, training):
    """The gradients of input, weight and bias; None for a weight or bias that was not given."""
    input, mean, var, weight, bias = ctx.saved_tensors
    if torch.is_grad_enabled():  # the backward is itself recorded (create_graph=True): use formulas with derivatives
        name = _check.name_of(ctx.activation, _check.ACTIVATIONS)
        if input.dim() == 4 and not _backend.stacks(grad):  # which have no memory order
            grad = grad.contiguous(memory_format=memory_format(input))  # and with it all that is made of it
        grads = reference.batch_norm_act_backward(
            grad, input, mean, var, weight, bias, ctx.eps, name, ctx.negative_slope, training
        )
    else:
        grads = torch.ops.genimg_fast.batch_norm_act_backward(
            grad, input, mean, var, weight, bias, ctx.eps, ctx.activation, ctx.negative_slope, training
        )
    return grads[0], *(None if t is None else g.to(t.dtype) for t, g in zip((weight, bias), grads[1:], strict=True))


def _setup_inference(ctx, inputs, output):
    input, mean, var, weight, bias, ctx.eps, ctx.activation, ctx.negative_slope = inputs
    ctx.save_for_backward(input, mean, var, weight, bias)


def _backward_inference(ctx, grad):
    grad_input, grad_weight, grad_bias = _gradients(ctx, grad, training=False)
    return grad_input, None, None, grad_weight, grad_bias, None, None, None


def _setup_training(ctx, inputs, output):
    input, weight, bias, ctx.eps, ctx.activation, ctx.negative_slope = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)  # they only feed the running statistics
    ctx.set_materialize_grads(False)  # else their own upstream gradients would be written as zeros
    ctx.save_for_backward(input, mean, var, weight, bias)


def _backward_training(ctx, grad, _grad_mean, _grad_var):
    grads = (None, None, None) if grad is None else _gradients(ctx, grad, training=True)
    return *grads, None, None, None


register("batch_norm_act_inference", _fake_inference, backward=_backward_inference, setup_context=_setup_inference)
register("batch_norm_act_training", _fake_training, backward=_backward_training, setup_context=_setup_training)
register("batch_norm_act_backward", _fake_backward)
register("batch_norm_act_move_statistics_", lambda *_: None)
register("batch_norm_act_statistics", _fake_statistics)  # the stages of training one by one, for sync_batch_norm_act
register("batch_norm_act_gradient_sums", _fake_gradient_sums)
register("batch_norm_act_gradient_input", _fake_gradient_input)

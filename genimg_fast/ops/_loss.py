# SPDX-License-Identifier: MIT
"""What the losses share.  Their gradient is made in the forward pass, by the kernel that reads the operands anyway."""

from __future__ import annotations

from collections.abc import Callable

import torch

from genimg_fast import _backend
from genimg_fast.ops import _check
from genimg_fast.ops._autocast import to_float32
from genimg_fast.ops._check import HALF_TYPES
from genimg_fast.ops._registration import register, wants_gradient


def why_not_one_dtype(input: torch.Tensor, **others: torch.Tensor | None) -> str | None:
    """The reason against the native kernels if torch would have to promote."""
    for name, value in others.items():
        if value is not None and value.dtype != input.dtype:
            return f"{name} is {value.dtype} but input is {input.dtype}; the kernels do not promote"
    return None


def why_slower(input: torch.Tensor, least: int, least_in_inference: int) -> str | None:
    """The reason to leave a loss of so few elements to PyTorch on the CPU."""
    least = least if wants_gradient(input) else least_in_inference
    if input.device.type != "cpu" or torch.compiler.is_compiling() or input.numel() >= least:
        return None
    return f"fewer than {least} elements, for which calling PyTorch's own operators is quicker"


def kernels_widen(input: torch.Tensor, target: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether kernels take these tensors as autocast leaves them, images in float32 for one, and give a loss in float32."""
    if input.device.type != "cuda" or input.dtype not in HALF_TYPES:
        return False
    dtypes = (input.dtype, torch.float32)
    return target.dtype in dtypes and all(t is None or t.dtype == input.dtype for t in others)


# The fakes of csrc/ops/loss.h.


def saved_gradient(like: torch.Tensor, wanted: bool) -> torch.Tensor:
    dtype = torch.float32 if like.dtype == torch.float16 else like.dtype
    return torch.empty_like(like, dtype=dtype) if wanted else like.new_empty((0,), dtype=dtype)


def new_loss(input: torch.Tensor, float32_loss: bool) -> torch.Tensor:
    return input.new_empty((), dtype=torch.float32 if float32_loss and input.dtype in HALF_TYPES else input.dtype)


def keep(ctx, *, differentiable: tuple[int, ...], gradients: tuple[torch.Tensor, ...]) -> None:
    """The part of a setup_context that concerns the gradients made in the forward pass.

    Args:
        differentiable: the positions of the inputs that they belong to.
    """
    ctx.mark_non_differentiable(*gradients)
    ctx.set_materialize_grads(False)  # else their own upstream gradients would be written as zeros
    ctx.differentiable = differentiable


def refuse_other_gradients(op: str, ctx) -> None:
    """Raises where autograd asks for a gradient that the kernels do not have.

    The public function has looked for that already; inside vmap it cannot see which tensors require grad.
    """
    if any(needed for i, needed in enumerate(ctx.needs_input_grad) if i not in ctx.differentiable):
        raise NotImplementedError(f"{op}: only its first arguments are differentiable here; use backend 'reference'")


def gradient_of_input(
    op: str, ctx, upstream: torch.Tensor | None, formula: Callable[..., torch.Tensor]
) -> torch.Tensor | None:
    """The backward of a loss that is differentiable in its first argument alone: its operands, and then its gradient, were saved.

    Args:
        formula: the reference's backward, which takes the upstream gradient, the operands and the name of the reduction.
    """
    refuse_other_gradients(op, ctx)
    *operands, gradient = ctx.saved_tensors
    if upstream is None:
        return None
    dtype = operands[0].dtype
    if torch.is_grad_enabled() or not ctx.with_grad:  # create_graph=True: use formulas with derivatives
        operands = to_float32(*operands) if ctx.float32_loss else operands
        return formula(upstream, *operands, _check.name_of(ctx.reduction, _check.REDUCTIONS)).to(dtype)
    return times_upstream(gradient, upstream, dtype)


def times_upstream(gradient: torch.Tensor, upstream: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """gradient * upstream, without a pass over memory where upstream is the 1 of `loss.backward()`."""
    if upstream is None:
        return None
    if not _is_plain_scalar(upstream):
        return (gradient * upstream).to(dtype)
    if gradient.dtype == dtype and _is_last_backward():
        if upstream.device.type == "cuda":  # to look at it would be to wait for the GPU
            torch.ops.genimg_fast.scale_gradient_(gradient, upstream)
            return gradient
        if upstream.item() == 1:
            return gradient
    return torch.mul(gradient, upstream, out=torch.empty_like(gradient, dtype=dtype))  # rounded once, and by one kernel


def _is_plain_scalar(upstream: torch.Tensor) -> bool:
    """And nothing is traced, where its value is not known and nothing may be written in place."""
    if upstream.dim() != 0 or type(upstream) is not torch.Tensor:
        return False
    if _backend.is_batched(upstream):  # each example has its own
        return False
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0


def _is_last_backward() -> bool:
    """The graph is freed by this backward pass (no retain_graph): whoever gets a saved tensor may then keep it and write
    into it, as the accumulation into `.grad` does."""
    retained = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return not retained()


register("scale_gradient_", lambda gradient, upstream: None)

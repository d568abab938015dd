# SPDX-License-Identifier: MIT
"""Gives a native op what the stable ABI cannot: its fake kernel, its autograd formula and its vmap rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from genimg_fast import _extension


def register(
    name: str,
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Registers `fake` and, where given, autograd for `torch.ops.genimg_fast.<name>`; vmap runs the op example by example.

    Does nothing where the native library is not loaded.
    """
    if not _extension.status("cpu").loaded:
        return
    if not hasattr(torch.ops.genimg_fast, name):
        return _extension.reject_stale(name)
    qualified = f"genimg_fast::{name}"
    torch.library.register_fake(qualified, fake)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    op = getattr(torch.ops.genimg_fast, name).default

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def select(arg: Any, dim: Any, index: int) -> Any:
            if isinstance(dim, list | tuple):
                return [select(a, d, index) for a, d in zip(arg, dim, strict=True)]
            if not isinstance(dim, int):
                return arg
            return arg.select(dim, index) if info.batch_size else arg.sum(dim).to(arg.dtype)

        def example(index: int) -> Any:
            return op(*(select(a, d, index) for a, d in zip(args, in_dims, strict=True)))

        # of a batch without examples: what one of zeros, which are sums of none, would give, none times
        outputs = [example(index) for index in range(max(info.batch_size, 1))]
        stacked = pytree.tree_map(lambda *parts: torch.stack(parts)[: info.batch_size], *outputs)
        return stacked, pytree.tree_map(lambda _: 0, stacked)

    torch.library.register_vmap(qualified, vmap)


def wants_gradient(*inputs: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in inputs)


def why_not_differentiable(**constants: torch.Tensor | None) -> str | None:
    """The reason against the native kernels if one of `constants`, by which they do not differentiate, requires grad."""
    for name, value in constants.items():
        if value is not None and wants_gradient(value):
            return f"{name} requires grad, and the kernels do not differentiate with respect to it"
    return None


def wanted(ctx: Any) -> list[bool]:
    """Of each argument of a node of the autograd graph, those of a list one by one: whether the backward pass that runs wants its
    gradient.

    `ctx.needs_input_grad` tells whether any may, in a PyTorch that does not know better: torch.autograd.grad(output, input) wants no
    weight's.
    """
    needs = [need for given in ctx.needs_input_grad for need in (given if isinstance(given, list) else [given])]
    nodes = [node for node, _ in ctx.next_functions if node is not None]
    if len(nodes) != sum(needs):  # it knows better
        return needs
    nodes.reverse()
    return [need and _will_run(nodes.pop()) for need in needs]


def _will_run(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # of a leaf that torch.autograd.grad was asked for, and where another engine runs
        return True


def recorded_gradients(
    function: Callable[..., torch.Tensor],
    tensors: Sequence[torch.Tensor | None],
    wants: Sequence[bool],
    grad: torch.Tensor,
    *,
    create_graph: bool = True,
) -> list[torch.Tensor | None]:
    """The gradients of ``function(*tensors)`` that are wanted, from formulas with derivatives.

    They are those of this call alone, so a view of each tensor stands for it: the same tensor may be given twice, or be computed
    from another one, and its hooks wait for its whole gradient.
    """
    with torch.enable_grad():
        views = [None if t is None else t.view_as(t) for t in tensors]
        output = function(*views)
    asked_for = [view for view, want in zip(views, wants, strict=True) if want and view is not None]
    found = iter(torch.autograd.grad(output, asked_for, grad, create_graph=create_graph, allow_unused=True))
    return [next(found) if want and view is not None else None for view, want in zip(views, wants, strict=True)]

# SPDX-License-Identifier: MIT
"""Gives a native op what the stable ABI cannot: its fake kernel, its autograd formula and its vmap rule."""

from __future__ import annotations

from collections.abc import Callable
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
            return arg.select(dim, index) if isinstance(dim, int) else arg

        def example(index: int) -> Any:
            return op(*(select(a, d, index) for a, d in zip(args, in_dims, strict=True)))

        outputs = [example(index) for index in range(info.batch_size)]
        stacked = pytree.tree_map(lambda *parts: torch.stack(parts), *outputs)
        return stacked, pytree.tree_map(lambda _: 0, stacked)

    torch.library.register_vmap(qualified, vmap)


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

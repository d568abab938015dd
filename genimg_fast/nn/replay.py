# SPDX-License-Identifier: MIT
"""Repeats a forward pass in inference that was one native chain, for as long as nothing it depends on has changed.

Finding out afresh what a pass has to do takes about as long as a small generator's convolutions of one image.  Here it takes one
comparison: of all that the modules hold, by identity, with what they held.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain as concatenate
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from genimg_fast import _backend
from genimg_fast.nn.chain import serves_all
from genimg_fast.ops import _packed
from genimg_fast.ops.block_chain import describe
from genimg_fast.reference.block_chain import Block


def replay(modules: Sequence[Any], input: torch.Tensor) -> torch.Tensor | None:
    """The output of these modules in turn, if `remember` saw a pass like this one."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not isinstance(modules[0], nn.Module):
        return None
    known = _known.get(modules[0])
    if known is None or known.shape != input.shape:
        return None
    if known.others != modules[1:] or not known.holds(modules[0], input):
        del _known[modules[0]]  # with its packed weights
        return None
    return known.run(input)


def remember(modules: Sequence[Any], input: torch.Tensor, blocks: Sequence[Block]) -> None:
    """`blocks` are all that a pass of the modules on `input` runs."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or any(block.training for block in blocks):
        return
    if serves_all(input, blocks) and (packed := _packed.packed_weights(input, blocks, describe(blocks))):
        _known[modules[0]] = _Replay(modules, input, blocks, packed)


class _Replay:
    """It holds what lies in the modules, but not the first of them, which lives for as long as others want it."""

    def __init__(
        self, modules: Sequence[Any], input: torch.Tensor, blocks: Sequence[Block], packed: list[torch.Tensor]
    ):
        self.shape, self.dtype = input.shape, input.dtype
        self.backend = _backend.current_backend()
        self.others = modules[1:]
        all_modules = [m for module in modules if isinstance(module, nn.Module) for m in module.modules()]
        self.first_type = type(modules[0])
        self.inner = all_modules[1:]
        self.inner_types = list(map(type, self.inner))
        # attributes, and what lies in those that are dictionaries: parameters, buffers, children, hooks
        self.dicts = [
            d for m in all_modules for d in (m.__dict__, *(v for v in m.__dict__.values() if type(v) is dict))
        ]
        self.held = list(concatenate.from_iterable(map(dict.values, self.dicts)))
        self.hooks = [v for m in all_modules for name, v in m.__dict__.items() if name.endswith("_hooks")]
        self.weights = [block.weight for block in blocks]
        self.state = _packed.state(self.weights)
        self.settings = torch.ops.genimg_fast.cpu_settings()
        self.packed, self.description = packed, describe(blocks)
        self.operator = torch.ops.genimg_fast.block_chain_inference.default

    def holds(self, first: nn.Module, input: torch.Tensor) -> bool:
        return (
            type(input) is torch.Tensor
            and input.dtype is self.dtype
            and input.is_cpu
            and input.layout is torch.strided
            and not torch.is_autocast_enabled("cpu")
            and not _backend.inside_func_transform()
            and _backend.current_backend() == self.backend
            and not _backend.is_recording()
            and not _has_any_global_hook()
            and not any(self.hooks)
            and type(first) is self.first_type
            and list(map(type, self.inner)) == self.inner_types
            and _are_the_same(list(concatenate.from_iterable(map(dict.values, self.dicts))), self.held)
            and _packed.state(self.weights) == self.state
            and torch.ops.genimg_fast.cpu_settings() == self.settings
        )

    def run(self, input: torch.Tensor) -> torch.Tensor:
        parameters, fixed, codes, numbers = self.description
        return self.operator(input, parameters, fixed, self.packed, codes, numbers)


def _are_the_same(some: list[object], others: list[object]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


_known: WeakKeyDictionary[nn.Module, _Replay] = WeakKeyDictionary()

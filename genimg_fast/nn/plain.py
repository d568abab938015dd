# SPDX-License-Identifier: MIT
"""Remembers passes in which nothing ran natively, since PyTorch is faster on such shapes: from then on the layers are
called as they are.

To call them so is right for any pass, so the memory need only tell one kind of pass from another.  It saves small layers,
which PyTorch runs in tens of microseconds, from finding out anew each time that they are best left alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from genimg_fast import _backend
from genimg_fast.nn.layers import Call
from genimg_fast.ops._autocast import convolution_dtype

T = TypeVar("T")

# Remembered for a module, at 300 bytes each: images of 16 heights and 16 widths, in training and in inference.  Where more
# shapes than that take turns, one that comes again was forgotten, and costs what it cost the first time.
_MOST_PASSES = 512

Passes = WeakKeyDictionary[nn.Module, OrderedDict[Hashable, T]]
"""Of a module, what is known of each kind of pass that starts with it: the oldest first."""

_passes: Passes[None] = WeakKeyDictionary()


def remember(passes: Passes[T], first: nn.Module, kind: Hashable, value: T, most: int) -> None:
    """Up to `most` kinds of a module's passes: the oldest makes way for the newest."""
    of_first = passes.setdefault(first, OrderedDict())
    of_first[kind] = value
    while len(of_first) > most:
        of_first.popitem(last=False)  # in one piece, whatever other threads remember


def call_each(layers: Sequence[Any], input: torch.Tensor) -> torch.Tensor:
    """Each layer on the output of the one before, as it is."""
    for layer in layers:
        input = layer(input)
    return input


def is_known(modules: Sequence[Any], input: torch.Tensor) -> bool:
    """Whether `learn` saw a pass like this one."""
    if torch.compiler.is_compiling() or not isinstance(modules[0], nn.Module):
        return False
    if type(input) not in (torch.Tensor, nn.Parameter) or torch._C._is_tracing():  # whose shape is no tuple of numbers
        return False
    passes = _passes.get(modules[0])
    return passes is not None and _kind(modules, input) in passes and _may_choose()


def learn(modules: Sequence[Any], input: torch.Tensor) -> None:
    """Nothing of a pass of these modules on `input` ran natively."""
    if torch.compiler.is_compiling() or not isinstance(modules[0], nn.Module) or not _may_choose():
        return
    # where less runs natively than otherwise, whatever is faster
    if _backend.inside_func_transform() or _has_any_global_hook() or any(map(_is_watched, modules)):
        return
    remember(_passes, modules[0], _kind(modules, input), None, _MOST_PASSES)


def _kind(modules: Sequence[Any], input: torch.Tensor) -> Hashable:
    first = modules[0]
    kind = (
        *(input.shape, input.dtype, input.device, first.training),
        input.layout is torch.strided and input.stride(),
        torch.is_grad_enabled() and (input.requires_grad or any(map(_trains, modules))),
        torch._C._is_any_autocast_enabled() and convolution_dtype(input),
    )
    if len(modules) == 1 and not first._modules:  # a layer alone, of which what this function takes is felt
        return kind
    return *kind, *map(identity_of, modules[1:]), *map(id, first._modules.values())


def _trains(layer: Any) -> bool:
    if not isinstance(layer, nn.Module):
        return False
    for parameter in layer._parameters.values():  # most often the first one tells
        if parameter is not None and parameter.requires_grad:
            return True
    return any(map(_trains, layer._modules.values()))


def _is_watched(layer: Any) -> bool:
    """Whether it, or a layer in it, has hooks, which may be gone in the next pass: other than those that compute a weight."""
    if not isinstance(layer, nn.Module):
        return False
    if layer._modules:  # whose own hooks keep no layer in it from the kernels
        return any(map(_is_watched, layer._modules.values()))
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(not type(hook).__module__.startswith("torch.nn.utils.") for some in hooks for hook in some.values())


def identity_of(layer: Any) -> int:
    # a call is made anew in each pass
    return id(layer.function if type(layer) is Call else layer)


def _may_choose() -> bool:
    # In activation checkpointing, as in all that has hooks on what is saved, forward and its repetition must choose alike.
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is None and _backend.current_backend() == "auto" and not _backend.is_recording()

# SPDX-License-Identifier: MIT
"""Repeats a forward pass in inference in which convolution blocks ran, for as long as nothing it depends on has changed.

Finding out afresh what a pass has to do takes about as long as a small generator's convolutions of one image.  Here it takes one
comparison: of all that the modules hold with what they held.  Blocks that the native chain serves are kept as such chains;
the layers between them are called.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Hashable, Sequence
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, finalize

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from genimg_fast import _backend
from genimg_fast._block import Block
from genimg_fast.nn import plain
from genimg_fast.nn.chain import block_by_block, gives_channels_last, may_chain, native_runs
from genimg_fast.nn.layers import BLOCKS, Call, activation_of, doubles, halves, takes_batch_statistics
from genimg_fast.nn.norm import parameter
from genimg_fast.nn.plain import identity_of
from genimg_fast.nn.steps import Step, block, convolution_of, pad_before, resamples
from genimg_fast.ops import _packed
from genimg_fast.ops._autocast import autocasts, half_in_float32
from genimg_fast.ops._memory_order import to_channels_last
from genimg_fast.ops.batch_norm_act import is_worth_a_kernel
from genimg_fast.ops.block_chain import describe
from genimg_fast.ops.resampling_weight import samples


def replay(modules: Sequence[Any], input: torch.Tensor) -> torch.Tensor | None:
    """The output of these modules in turn, if a `Recording` was kept of a pass like this one."""
    if torch.compiler.is_compiling() or not isinstance(modules[0], nn.Module):
        return None
    if torch.is_grad_enabled():
        if modules[0].training and modules[0] in _known:  # what was packed will be out of date after this step
            forget(modules[0])
        return None
    passes = _known.get(modules[0])
    known = None if passes is None else passes.get(_kind(modules, input))
    if known is None or known.others != modules[1:]:
        return None
    output = known.run(modules[0], input) if known.holds(modules[0], input) else None
    if output is not None:
        _backend.count_native_call()
    elif _known.get(modules[0]) is passes:  # and no other thread was here before
        _known.pop(modules[0], None)  # with its packed weights; the other passes are as old
    return output


def forget(module: nn.Module) -> None:
    """The passes that start with this module, which hold its tensors and those of the layers after it; and their packed weights."""
    weights = [weight for known in _known.pop(module, {}).values() for weight in known.weights]
    _packed.forget((*weights, *module.parameters(recurse=False)))


class Recording:
    """What a pass runs, part by part, for `replay` to repeat."""

    def __init__(self, modules: Sequence[Any], input: torch.Tensor):
        self.modules, self.input = modules, input
        self.parts: list[_Part] = []
        self.weights: list[torch.Tensor] = []
        """Those that the chains have packed, or that what they have packed was made of."""
        self.resampled: list[torch.Tensor] = []
        """Those of convolutions with a resampling, which the kernels see in another form."""
        self.fits = True

    @staticmethod
    def of(modules: Sequence[Any], steps: Sequence[Step], input: torch.Tensor) -> Recording | None:
        """One of a pass of these modules, which takes these steps; None where its parts are to be recorded each by itself.

        To record takes longer than a small pass.  It waits for a second pass with the same weights, so that those who evaluate after
        each step of training, or after each move of an average, are spared it: of the first comes one that keeps nothing.
        """
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not isinstance(modules[0], nn.Module):
            return None
        if not all(map(_may_repeat, steps)):
            return None
        weights = [parameter(convolution_of(step.layers), "weight") for step in steps if step.kind in BLOCKS]
        if not weights or type(input) is not torch.Tensor or not _may_record(input):
            return None
        if not _have_settled(modules, input, weights):
            recording = Recording(modules, input)
            recording.fits = False
            return recording
        if any(_hooks(_all_modules(modules))):
            return None
        # what compares modules below, and finds them by their hashes, wants each to be equal to itself alone
        if _refer_back(modules) or any(type(m).__eq__ is not object.__eq__ for m in _all_modules(modules)):
            return None
        return Recording(modules, input)

    def add(self, function: Callable[[Sequence[Any], torch.Tensor], torch.Tensor], layers: Sequence[Any]) -> None:
        """``function(layers, input)`` on the output so far."""
        self.parts.append(
            _Part(None, None, function, [_FIRST if layer is self.modules[0] else layer for layer in layers])
        )

    def add_blocks(
        self, input: torch.Tensor, blocks: Sequence[Block], layers: Sequence[Sequence[Any]], pad: Call | None
    ) -> None:
        """`blocks`, made of these layers, on the output so far, of which `pad` makes `input`."""
        if not self.fits or not _may_record(input) or any(block.training for block in blocks):
            self.fits = False
            return
        for served, shape, run in native_runs(input, blocks):
            of_run, layers = layers[: len(run)], layers[len(run) :]
            if served:
                self.add(plain.call_each, [layer for together in of_run for layer in together])
                chain = _keep(input.new_empty(shape), run)
                if chain is None:
                    self.fits = False
                    return
                self.parts[-1] = self.parts[-1]._replace(chain=chain, pad=pad)
                self.weights += [block.weight for block in run]
                self._add_resampled(of_run)
            elif _backend.current_backend() != "auto":
                self.fits = False
            else:
                self._add_one_by_one(run, of_run, shape)
            pad = None

    def _add_resampled(self, layers: Sequence[Sequence[Any]]) -> None:
        weights = [convolution_of(together).weight for together in layers if resamples(together)]
        self.resampled += weights
        self.weights += weights

    def _add_one_by_one(self, blocks: Sequence[Block], layers: Sequence[Sequence[Any]], shape: Sequence[int]) -> None:
        """Blocks that PyTorch convolves; what comes after a convolution runs as it did in the pass that is recorded."""
        for each, together in zip(blocks, layers, strict=True):
            shape = each.output_shape(shape)
            normalizes = each.running_mean is not None and is_worth_a_kernel(math.prod(shape), training=False)
            self.add(_run_block if normalizes or resamples(together) else plain.call_each, together)

    def keep(self) -> None:
        """What was added is all that the pass runs."""
        if not self.fits or all(part.function is plain.call_each and not part.chain for part in self.parts):
            return
        replay = _Replay(self)
        plain.remember(_known, self.modules[0], _kind(self.modules, self.input), replay, _MOST_PASSES)


def _run_block(layers: Sequence[Any], input: torch.Tensor) -> torch.Tensor:
    pad = pad_before(layers)
    if pad is not None:
        input = pad(input)
    return block_by_block(input, [block(layers, input)])


class _KeptChain:
    """A native chain, which is kept for as long as this is."""

    def __init__(self, number: int, shape: tuple[int, ...], in_channels_last: bool):
        self.number = number  # of block_chain_keep
        self.shape = shape  # of its input
        self.in_channels_last = in_channels_last  # what it is to be given
        finalize(self, torch.ops.genimg_fast.block_chain_release, number)


_FIRST = object()


class _Part(NamedTuple):
    chain: _KeptChain | None
    pad: Call | None
    """What makes the chain's input of the output so far, if anything."""
    function: Callable[[Sequence[Any], torch.Tensor], torch.Tensor]
    """Of `layers` and the output so far: what to run where there is no chain, or it is out of date."""
    layers: list[Any]
    """With `_FIRST` in the place of the first of the modules, which is not held."""


def _may_record(input: torch.Tensor) -> bool:
    """Not where what goes in or comes out is converted."""
    return may_chain(input) and not autocasts(input) and not half_in_float32(input)


def _may_repeat(step: Step) -> bool:
    if step.kind:
        return step.kind != "sync_batch_norm_act" and not any(map(takes_batch_statistics, step.layers))
    # PyTorch's own: what others wrote may lead back to the model in ways that are not looked for
    layer = step.layers[0]
    if not isinstance(layer, nn.Module):
        return activation_of(layer) is not None or doubles(layer) or halves(layer)
    return type(layer).__module__.startswith("torch.nn.") and not layer._modules


def _have_settled(modules: Sequence[Any], input: torch.Tensor, weights: Sequence[Any]) -> bool:
    """Whether a pass like this one has been seen with its weights as they are now."""
    if any(w.is_inference() for w in weights):  # which have no version
        return False
    kind, now = _kind(modules, input), [number for w in weights for number in (id(w), w._version)]
    before = _met.get(modules[0])
    if before is not None and before.get(kind) == now:
        return True
    plain.remember(_met, modules[0], kind, now, _MOST_PASSES)
    return False


def _kind(modules: Sequence[Any], input: torch.Tensor) -> Hashable:
    return input.shape, *map(identity_of, modules[1:])


def _keep(input: torch.Tensor, blocks: Sequence[Block]) -> _KeptChain | None:
    """The native chain; None where it cannot be kept."""
    description = describe(blocks)
    parameters, fixed, codes, numbers = description
    if not all(map(_lies_dense, (*parameters, *fixed))):
        return None
    packed = _packed.packed_weights(input, blocks, description)
    if not packed:
        return None
    number = torch.ops.genimg_fast.block_chain_keep(input, parameters, fixed, packed, codes, numbers)
    return _KeptChain(number, tuple(input.shape), gives_channels_last(blocks))


def _lies_dense(t: torch.Tensor) -> bool:
    """As the kernels read it, so that they see what is written into it."""
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


class _Replay:
    """It holds what lies in the modules, but not the first of them, which lives for as long as others want it."""

    def __init__(self, recording: Recording):
        modules, input = recording.modules, recording.input
        self.parts = recording.parts
        self.dtype = input.dtype
        self.backend = _backend.current_backend()
        self.others = modules[1:]
        all_modules = _all_modules(modules)
        self.first_type = type(modules[0])
        self.inner = all_modules[1:]
        self.inner_types = list(map(type, self.inner))
        self.hooks = _hooks(all_modules)
        # attributes, and what lies in those that are dictionaries: parameters, buffers, children
        self.dicts = [
            d
            for m in all_modules
            for d in (
                m.__dict__,
                *(v for k, v in m.__dict__.items() if isinstance(v, dict) and not k.endswith("_hooks")),
            )
        ]
        self.held = list(map(dict, self.dicts))
        self.children = [m._modules for m in all_modules if len(m._modules) > 1]
        self.orders = list(map(list, self.children))
        self.weights = recording.weights
        self.versions = [w._version for w in self.weights]  # a packed weight's; the kernels look at the memory itself
        self.samples = [(weight, samples(weight)) for weight in recording.resampled]
        self.settings = torch.ops.genimg_fast.cpu_settings()
        self.is_outdated = False

    def run(self, first: nn.Module, input: torch.Tensor) -> torch.Tensor | None:
        """None if the first part is out of date."""
        output: Any = input
        for i, (chain, pad, function, layers) in enumerate(self.parts):
            if chain is not None:
                repeated = self.repeat(chain, output if pad is None else pad(output))
                if repeated is not None:
                    output = repeated
                    continue
                self.is_outdated = True
                if i == 0:
                    return None
            output = function([first if layer is _FIRST else layer for layer in layers], output)
        return output

    def repeat(self, chain: _KeptChain, input: Any) -> torch.Tensor | None:
        # a layer between the chains may have made anything of its input
        if not self.is_like_input(input) or input.shape != chain.shape:
            return None
        given = to_channels_last(input) if chain.in_channels_last else input
        return torch.ops.genimg_fast.block_chain_repeat.default(given, chain.number)

    def is_like_input(self, t: Any) -> bool:
        return (
            type(t) in (torch.Tensor, nn.Parameter) and t.dtype is self.dtype and t.is_cpu and t.layout is torch.strided
        )

    def holds(self, first: nn.Module, input: torch.Tensor) -> bool:
        return (
            not self.is_outdated
            and self.is_like_input(input)
            and not torch.is_autocast_enabled("cpu")
            and not _backend.inside_func_transform()
            and _backend.current_backend() == self.backend
            and not _backend.is_recording()
            and not _has_any_global_hook()
            and not any(self.hooks)
            and type(first) is self.first_type
            and list(map(type, self.inner)) == self.inner_types
            and _equal(self.dicts, self.held)
            and list(map(list, self.children)) == self.orders  # which the line above does not see
            and [w._version for w in self.weights] == self.versions
            and all(torch.equal(samples(weight), before) for weight, before in self.samples)
            and torch.ops.genimg_fast.cpu_settings() == self.settings
        )


def _all_modules(modules: Sequence[Any]) -> list[nn.Module]:
    return [m for module in modules if isinstance(module, nn.Module) for m in module.modules()]


def _hooks(modules: list[nn.Module]) -> list[dict]:
    return [v for m in modules for name, v in m.__dict__.items() if name.endswith("_hooks")]


_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
_MOST_REFERENCES = 1000


def _refer_back(modules: Sequence[Any]) -> bool:
    """Whether the first module may be reached from what lies in them: to hold that would keep it for ever."""
    if any(m is modules[0] for m in _all_modules(modules[1:])):
        return True
    found: list[Any] = []
    for m in _all_modules(modules):
        found += [v for name, v in m.__dict__.items() if name not in _OF_EVERY_MODULE and gc.is_tracked(v)]
        for t in (*m._parameters.values(), *m._buffers.values()):
            if t is not None:
                found += filter(None, (t.__dict__, t._backward_hooks, t._post_accumulate_grad_hooks))
    seen: set[int] = set()
    while found and len(seen) < _MOST_REFERENCES:
        value = found.pop()
        if value is modules[0]:
            return True
        if id(value) in seen or isinstance(value, (type, ModuleType)):
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):  # not all that its file defines
            found += [value.__closure__, value.__defaults__, value.__kwdefaults__]
        else:
            found += gc.get_referents(value)
    return bool(found)


def _equal(some: list[dict], others: list[dict]) -> bool:
    # Identity is looked at first: what is compared by value is an attribute or a tensor that was replaced.
    try:
        return some == others
    except Exception:  # whatever the values' own comparison raises, as a tensor's of several values does
        return False


# Remembered for a module, as a head is called on images of several sizes, or with a normalisation of its own for each.
_MOST_PASSES = 8

_known: plain.Passes[_Replay] = WeakKeyDictionary()

_met: plain.Passes[list[int]] = WeakKeyDictionary()
"""The weights of passes that were not recorded."""

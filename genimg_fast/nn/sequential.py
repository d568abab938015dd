# SPDX-License-Identifier: MIT
"""Layers one after the other, run as fused calls; and a `torch.nn.Sequential` that runs its own so."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from genimg_fast import _backend
from genimg_fast._backend import may_fuse
from genimg_fast._block import Block
from genimg_fast.nn import plain
from genimg_fast.nn.chain import run_blocks
from genimg_fast.nn.fused import Fused
from genimg_fast.nn.layers import BLOCKS, doubles, is_batch_norm, why_must_be_called
from genimg_fast.nn.norm import counts
from genimg_fast.nn.parts import parts_on
from genimg_fast.nn.replay import Recording, replay
from genimg_fast.nn.steps import (
    REORDERED,
    Step,
    before_convolution,
    block,
    commutes,
    is_instance_norm,
    pad_before,
    plan,
    run_norm_step,
    run_reordered,
    to_keep,
    upsamples,
)
from genimg_fast.reference import block_chain as reference


class FusedSequential(Fused, nn.Sequential):
    """`torch.nn.Sequential` whose layers run fused, each group as one call of `genimg_fast.functional`.

    Fused are ``Conv2d | ConvTranspose2d`` (+ ``BatchNorm2d``) (+ activation) and ``BatchNorm1d | BatchNorm2d | InstanceNorm2d``
    (+ activation), with ``ReLU``, ``LeakyReLU``, ``Tanh`` or ``Sigmoid`` as the activation, and ``SyncBatchNorm`` once `fuse` has
    seen it; a call ends before one that waits for other processes.  A nearest-neighbour upsampling by two belongs to the call of a
    ``Conv2d`` of kernel 3 after it, and a mean over two by two pixels to that of one before it.  All other children are called
    as in ``nn.Sequential``; so is a child that must see its own call: one with hooks, with a parametrization, of a
    subclass.  `plan` says which, and why.

    Children, parameters, buffers and ``state_dict`` are those of ``nn.Sequential(*args)``, and the output and gradients equal
    its own, running statistics and ``num_batches_tracked`` included.  The mode of each batch normalisation is its own
    ``training`` flag, so frozen ones stay frozen.  While `torch.export`, ONNX export or ``torch.jit.trace`` records, the
    layers are called as in ``nn.Sequential``, so that what is exported has standard operators alone.

    Shape: that of ``nn.Sequential(*args)``.

    Raises:
        TypeError, ValueError: input of the wrong dtype or shape, as the functions and ``torch.nn`` layers do.
    """

    _genimg_fast_plain_class = nn.Sequential

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # whoever holds this method may call it after `unfuse`, when self has neither this class's methods nor its bases
        make_plan = self.plan if isinstance(self, FusedSequential) else partial(FusedSequential.plan, self)
        return run_steps([self], make_plan, partial(nn.Sequential.forward, self), input)

    def plan(self) -> list[Step]:
        """The steps of a forward pass, in order; those of a FusedSequential inside it name their layers by paths, such as "0.1"."""
        return plan(list(flat(self._modules.items())))

    def __getitem__(self, idx):
        if isinstance(idx, slice):  # nn.Sequential calls self.__class__(children): not the constructor of each subclass
            return FusedSequential(OrderedDict(list(self._modules.items())[idx]))
        return nn.Sequential.__getitem__(self, idx)


def run_in_turn(layers: Sequence[Any], input: torch.Tensor) -> torch.Tensor:
    """Each layer on the output of the one before, fused where `plan` says so.

    Args:
        layers: modules, or other callables of one argument.
    """
    # a function, as in `self.conv(F.relu(x))`, starts no fused call unless it is an upsampling
    while layers and not isinstance(layers[0], nn.Module) and not _starts_with_upsampling(layers):
        input, layers = layers[0](input), layers[1:]
    if not layers:
        return input
    if len(layers) == 1 and isinstance(layers[0], nn.Sequential):
        # whose forward() may do more than to run its layers, of which it remembers passes itself
        return layers[0](input)
    return run_steps(
        layers, lambda: plan(list(flat(("", layer) for layer in layers))), partial(plain.call_each, layers), input
    )


def _starts_with_upsampling(layers: Sequence[Any]) -> bool:
    """Whether the first step of their plan does."""
    if not doubles(layers[0]):
        return False
    following = (layer for _, layer in flat(("", layer) for layer in layers[1:3]))
    first = [layers[0], *islice(following, 2)]
    return before_convolution(first) > 0 or commutes(first)


def run_steps(
    modules: Sequence[Any],
    make_plan: Callable[[], list[Step]],
    as_they_are: Callable[[torch.Tensor], torch.Tensor],
    input: torch.Tensor,
) -> torch.Tensor:
    """The steps of a plan, which depends on nothing but these modules and what lies in them.

    Args:
        make_plan: gives no steps where none of the layers fuses.
        as_they_are: calls the layers without fusing any.
    """
    modules = _by_a_module(modules)
    if plain.is_known(modules, input) or not may_fuse(input):
        return as_they_are(input)
    output = replay(modules, input)
    if output is not None:
        return output
    steps = make_plan()
    if not steps:
        return as_they_are(input)
    native_calls = _backend.native_calls()
    output = _run(modules, steps, input)
    if _backend.native_calls() == native_calls:
        plain.learn(modules, input)
    return output


_AFTER = object()


def _by_a_module(modules: Sequence[Any]) -> Sequence[Any]:
    """With a module as the first, by which a pass is remembered; what comes before it stands behind `_AFTER`."""
    at = next((i for i, layer in enumerate(modules) if isinstance(layer, nn.Module)), 0)
    return modules if at == 0 else [modules[at], _AFTER, *modules[:at], *modules[at + 1 :]]


def _run(modules: Sequence[Any], steps: list[Step], input: torch.Tensor) -> torch.Tensor:
    runs = _runs(steps)
    recording = Recording.of(modules, steps, input)
    for run in runs:
        parts = parts_on(input, run)
        together = recording is not None or len(runs) == len(parts) == 1
        for part in parts:
            input = _run_part(part, input, recording) if together else _run_apart(part, input)
    if recording is not None:
        recording.keep()
    return input


def _run_apart(run: list[Step], input: torch.Tensor) -> torch.Tensor:
    """One of several, which is repeated, or left to PyTorch, whatever becomes of the others."""
    if not run[0].kind:
        return run[0].layers[0](input)
    layers = [layer for step in run for layer in step.layers]
    return run_steps(layers, lambda: run, partial(plain.call_each, layers), input)


def _runs(steps: list[Step]) -> list[list[Step]]:
    """Convolution blocks that stand one after the other, and what may be part of one, are together; every other step is alone."""
    runs: list[list[Step]] = []
    for step in steps:
        joins = (step.kind in BLOCKS and not pad_before(step.layers)) or is_instance_norm(step)
        if joins and runs and runs[-1][0].kind in BLOCKS:
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs


def _run_part(run: list[Step], input: torch.Tensor, recording: Recording | None) -> torch.Tensor:
    layers: list[Sequence[Any]] = [step.layers for step in run]
    if run[0].kind in BLOCKS:
        pad = pad_before(run[0].layers)
        if pad is not None:
            input = pad(input)
        elif upsamples(run[0].layers):
            input = to_keep(input)
        blocks = [block(together, input) for together in layers]
        if recording is not None:
            recording.add_blocks(input, blocks, layers, pad)
        return _run_blocks(input, blocks, layers)
    native_calls = _backend.native_calls()
    run_step = run_reordered if run[0].kind == REORDERED else run_norm_step if run[0].kind else plain.call_each
    output = run_step(layers[0], input)
    if recording is not None:
        recording.add(run_step if _backend.native_calls() != native_calls else plain.call_each, layers[0])
    return output


def _run_blocks(input: torch.Tensor, blocks: list[Block], layers: list[Sequence[Any]]) -> torch.Tensor:
    try:
        return run_blocks(input, blocks)
    # not what activation checkpointing raises to end a pass that got far enough
    except (TypeError, ValueError, RuntimeError):
        _take_back_counts(layers, blocks, input)
        raise


@torch.no_grad()
def _take_back_counts(together: Sequence[Sequence[Any]], blocks: Sequence[Block], input: torch.Tensor) -> None:
    """After an error in the blocks made of these layers: counts no batch that the plain layers would not have counted.

    Each of them counts when the convolution before it is done.  How far they would get is found by running them again: after
    an error the time no longer matters.
    """
    reached = 0
    for each in blocks:
        try:
            reference.block_chain(input, [each._replace(training=False, running_mean=None, running_var=None)])
            reached += 1
            mean, var = (None if t is None else t.clone() for t in (each.running_mean, each.running_var))
            input = reference.block_chain(input, [each._replace(running_mean=mean, running_var=var)])
        except Exception:
            break
    for layers in together[reached:]:
        for layer in layers:
            if is_batch_norm(layer) and counts(layer):
                layer.num_batches_tracked.sub_(1)


def flat(layers: Iterable[tuple[str, Any]], path: str = "") -> Iterator[tuple[str, Any]]:
    """The named layers, those of a FusedSequential in its place: its blocks are blocks among those around it."""
    for name, layer in layers:
        if _runs_inline(layer):
            yield from flat(layer._modules.items(), f"{path}{name}." if name else path)
        else:
            yield path + name, layer


def opened(layers: Iterable[Any]) -> Iterator[FusedSequential]:
    """Those in whose place `flat` puts their layers."""
    for layer in layers:
        if _runs_inline(layer):
            yield layer
            yield from opened(layer._modules.values())


def _runs_inline(module: Any) -> bool:
    """A block among blocks: the image need not be put back into its order between them."""
    return (
        isinstance(module, FusedSequential)
        and type(module).forward is FusedSequential.forward
        and type(module).__call__ is nn.Module.__call__
        and not why_must_be_called(module)
        and not _has_any_global_hook()
    )

# SPDX-License-Identifier: MIT
"""Packed weights in inference, kept for as long as the weights do not change.

A weight has changed when its version counter or its address has.  Writes through ``weight.data`` move neither: to
notice them, the CPU kernels compare some values with those that they packed, and where these differ pack for that call.  On
CUDA such a comparison would take a copy to the host: there packing is one small kernel a call, and packed weights are kept
only inside `kept_on_cuda`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.utils.weak import WeakIdKeyDictionary

from genimg_fast import _backend
from genimg_fast._block import Block

if TYPE_CHECKING:
    from genimg_fast.ops.block_chain import Description

_SHAPES = 4  # of the input, for which a chain keeps packed weights

# First weight of a chain -> {(codes of its blocks, sizes): (state of all its weights, packed weights)}, the oldest first.
# Several threads may run a model at once: each step below is a whole one, whatever others keep and forget in between.
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def state(weights: Sequence[torch.Tensor]) -> list[int]:
    """What changes when a weight does."""
    return [number for w in weights for number in (w.data_ptr(), w._version)]


_used_on_cuda: list[torch.Tensor] | None = None


@contextmanager
def kept_on_cuda() -> Iterator[list[torch.Tensor]]:
    """For code that captures a CUDA graph: warm-up calls in the block pack each weight once, and the graph packs none.

    Yields the packed weights that these calls use, for the caller to hold: the graph reads them, and others may drop them
    before it ends.  The caller sees to it that nothing writes through ``weight.data`` meanwhile, and captures anew when a
    weight has changed.
    """
    global _used_on_cuda
    before, _used_on_cuda = _used_on_cuda, []
    try:
        yield _used_on_cuda
    finally:
        _used_on_cuda = before


def keep(
    weights: Sequence[torch.Tensor], codes: Sequence[int], sizes: tuple, pack: Callable[[], list[torch.Tensor]]
) -> list[torch.Tensor]:
    """What `pack` made of the weights in this state, or makes of them now; nothing at all where it cannot be kept.

    Args:
        codes: what convolutions the weights are of: one weight may serve two, of which each packs it in its own way.
        sizes: all else that `pack` depends on.
    """
    packed = _keep(weights, (tuple(codes), sizes), pack)
    if _used_on_cuda is not None:
        _used_on_cuda.extend(packed)
    return packed


def _keep(weights: Sequence[torch.Tensor], key: tuple, pack: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    # a tensor that is no Parameter may be gone after this call, and one made in inference mode has no version counter
    if torch.compiler.is_compiling() or any(not isinstance(w, torch.nn.Parameter) or w.is_inference() for w in weights):
        return []
    if torch._C._len_torch_dispatch_stack():  # which may record what is called, to call it again with other weights
        return []
    now = state(weights)
    kept = _kept.setdefault(weights[0], {})
    known = kept.get(key)
    if known is not None and known[0] == now:
        return known[1]
    if weights[0].is_cuda and torch.cuda.is_current_stream_capturing():  # nothing is written before the graph runs
        return []
    packed = pack()
    for (codes, _), (other_state, other) in tuple(kept.items()):  # what is packed alike for another shape is kept once
        if codes == key[0] and other_state == now:
            packed = [o if _same(o, p) else p for o, p in zip(other, packed, strict=True)]
    kept.pop(key, None)
    for oldest in tuple(kept)[: 1 - _SHAPES]:
        kept.pop(oldest, None)
    kept[key] = (now, packed)
    return packed


def packed_weights(input: torch.Tensor, blocks: Sequence[Block], description: Description) -> list[torch.Tensor]:
    """One for each block of a chain; none at all where they cannot be kept."""
    # torch.compile does not take cpu_settings() into its graph, and torch.vmap has no rule for the packing
    if torch.compiler.is_compiling() or _backend.stacks(input):
        return []

    def pack() -> list[torch.Tensor]:
        return torch.ops.genimg_fast.block_chain_pack(
            input, description.parameters, description.codes, description.numbers
        )

    sizes = (*input.shape, torch.ops.genimg_fast.cpu_settings())
    return keep([block.weight for block in blocks], description.codes, sizes, pack)


def keeps_on_cuda() -> bool:
    return _used_on_cuda is not None


def forget(weight: torch.Tensor) -> None:
    """What is kept of the chains that start with it."""
    if not torch.compiler.is_compiling():
        _kept.pop(weight, None)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.is_cpu and torch.equal(a, b)

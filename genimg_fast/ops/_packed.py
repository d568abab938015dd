# SPDX-License-Identifier: MIT
"""Packed weights in inference, kept for as long as the weights do not change.

A weight has changed when its version counter or its address has.  Writes through ``weight.data`` move neither: to
notice them, the CPU kernels compare some values with those that they packed, and where these differ pack for that call.  On
CUDA such a comparison would take a copy to the host: there packing is one small kernel a call, and packed weights are kept
only inside `kept_on_cuda`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from genimg_fast import _backend, _extension
from genimg_fast._block import Block

if TYPE_CHECKING:
    from genimg_fast.ops.block_chain import Description

_WAYS = 4  # in which one weight is kept packed

# Weight -> {how it is packed: (its state, packed)}, the oldest first.
# Several threads may run a model at once: each step below is a whole one, whatever others keep and forget in between.
_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _state(weight: torch.Tensor) -> tuple[int, int]:
    """What changes when a weight does."""
    return weight.data_ptr(), weight._version


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
    weights: Sequence[torch.Tensor], ways: Sequence[Hashable], pack: Callable[[list[int]], list[torch.Tensor]]
) -> list[torch.Tensor]:
    """The weights packed, as they are now; nothing at all where that cannot be kept.

    Args:
        ways: how each is packed: one weight may serve several convolutions, of which each packs it in its own way.
        pack: packs those whose numbers it is given.
    """
    packed = _keep(weights, ways, pack)
    if _used_on_cuda is not None:
        _used_on_cuda.extend(packed)
    return packed


def _keep(
    weights: Sequence[torch.Tensor], ways: Sequence[Hashable], pack: Callable[[list[int]], list[torch.Tensor]]
) -> list[torch.Tensor]:
    # a tensor that is no Parameter may be gone after this call, and one made in inference mode has no version counter
    if torch.compiler.is_compiling() or any(not isinstance(w, torch.nn.Parameter) or w.is_inference() for w in weights):
        return []
    if torch._C._len_torch_dispatch_stack():  # which may record what is called, to call it again with other weights
        return []
    states = list(map(_state, weights))
    found = [_kept.setdefault(w, {}).get(way, (None, None)) for w, way in zip(weights, ways, strict=True)]
    packed: list[Any] = [p if state == now else None for (state, p), now in zip(found, states, strict=True)]
    missing = [i for i, p in enumerate(packed) if p is None]
    if not missing:
        return packed
    if weights[0].is_cuda and torch.cuda.is_current_stream_capturing():  # nothing is written before the graph runs
        return []
    for i, made in zip(missing, pack(missing), strict=True):
        packed[i] = made
        _remember(weights[i], ways[i], states[i], made)
    return packed


def _remember(weight: torch.Tensor, way: Hashable, state: tuple[int, int], packed: torch.Tensor) -> None:
    of_weight = _kept.setdefault(weight, {})
    for other, (other_state, _) in tuple(of_weight.items()):
        if other_state != state:
            of_weight.pop(other, None)
    for oldest in tuple(of_weight)[: 1 - _WAYS]:
        of_weight.pop(oldest, None)
    of_weight[way] = (state, packed)


def packed_weights(input: torch.Tensor, blocks: Sequence[Block], description: Description) -> list[torch.Tensor]:
    """One for each block of a chain; none at all where they cannot be kept."""
    # torch.compile does not take the variants into its graph, and torch.vmap has no rule for the packing
    if torch.compiler.is_compiling() or _backend.stacks(input):
        return []
    parameters, _, codes, numbers = description
    ways = [
        (*block.geometry.codes(), way, _extension.cpu_isa())
        for block, way in zip(
            blocks, torch.ops.genimg_fast.block_chain_ways(input, parameters, codes, numbers), strict=True
        )
    ]
    return keep(
        [block.weight for block in blocks],
        ways,
        lambda which: torch.ops.genimg_fast.block_chain_pack(input, parameters, codes, numbers, which),
    )


def keeps_on_cuda() -> bool:
    return _used_on_cuda is not None


def forget(weights: Iterable[torch.Tensor]) -> None:
    """What is kept of them."""
    if not torch.compiler.is_compiling():
        for weight in weights:
            _kept.pop(weight, None)

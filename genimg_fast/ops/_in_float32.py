# SPDX-License-Identifier: MIT
"""Blocks of a half type, computed in float32 on a CPU that would emulate that type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from genimg_fast import _backend
from genimg_fast._block import Block
from genimg_fast.ops.batch_norm_act import uncounted

_TENSORS = ("weight", "bias", "running_mean", "running_var", "bn_weight", "bn_bias")


def run_in_float32(
    input: torch.Tensor, blocks: Sequence[Block], run: Callable[[torch.Tensor, list[Block]], torch.Tensor]
) -> torch.Tensor:
    """``run(input, blocks)`` on all of them converted; its result, the gradients and running statistics are rounded."""
    _backend.count_native_call()  # else the pass would be remembered as one to leave as it is
    in_float32: dict[int, Any] = {id(None): None}  # by the tensor: that of a layer which is called twice is one
    converted = [
        block._replace(**{name: _once(getattr(block, name), in_float32) for name in _TENSORS}) for block in blocks
    ]
    try:
        return run(input.float(), converted).to(input.dtype)
    finally:  # of an error in a later block too
        with torch.no_grad():
            for running in {id(t): t for b in blocks if b.training for t in (b.running_mean, b.running_var)}.values():
                if running is not None and running.dtype is not torch.float32:
                    uncounted(running).copy_(in_float32[id(running)])


def _once(t: Any, in_float32: dict[int, Any]) -> Any:
    if id(t) not in in_float32:
        in_float32[id(t)] = t.float()
    return in_float32[id(t)]

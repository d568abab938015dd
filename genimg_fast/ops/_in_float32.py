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
    converted = list(map(_converted, blocks))
    output = run(input.float(), converted)
    for block, moved in zip(blocks, converted, strict=True):
        if block.training:
            _copy(block.running_mean, moved.running_mean)
            _copy(block.running_var, moved.running_var)
    return output.to(input.dtype)


def _converted(block: Block) -> Block:
    tensors = {name: getattr(block, name) for name in _TENSORS}
    in_float32: dict[str, Any] = {name: None if t is None else t.float() for name, t in tensors.items()}
    return block._replace(**in_float32)


@torch.no_grad()
def _copy(running: torch.Tensor | None, moved: torch.Tensor | None) -> None:
    if running is not None and moved is not None and moved is not running:  # which had float32 all along
        uncounted(running).copy_(moved)

# SPDX-License-Identifier: MIT
"""What the steps of all objectives share: the optimizer, accumulation over batches, and the update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from genimg_fast.training.config import TrainConfig

T = TypeVar("T")


def adam(model: nn.Module, lr: float | None, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, which is Adam while `weight_decay` is 0; `fused` updates all weights in one kernel."""
    assert lr is not None
    assert config.betas is not None
    group = {"params": list(model.parameters()), "initial_lr": lr}  # what the schedule multiplies
    return torch.optim.AdamW([group], lr=lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def accumulate(accelerator: Accelerator, model: nn.Module, batches: Sequence[T]) -> Iterator[T]:
    """Yields the batches of one step; under DDP the gradients of `model` are exchanged for the last one only."""
    for i, batch in enumerate(batches):
        with nullcontext() if i == len(batches) - 1 else accelerator.no_sync(model):
            yield batch


def update(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, model: nn.Module, grad_clip: float | None
) -> None:
    """Clips the gradients of `model`, takes the optimizer's step and drops the gradients."""
    if grad_clip is not None:
        # Not accelerator.clip_grad_norm_: that unscales the gradients of every optimizer, and a GAN has two.
        accelerator.unscale_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad()

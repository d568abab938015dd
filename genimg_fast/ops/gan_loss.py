# SPDX-License-Identifier: MIT
"""The objectives of a GAN's two players, composed of the other losses and plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast.ops import _check
from genimg_fast.ops._autocast import float32_under_autocast
from genimg_fast.ops.bce_with_logits_loss import bce_with_logits_loss


@float32_under_autocast
def gan_loss(logits: torch.Tensor, real: bool, kind: str = "bce", *, generator: bool = False) -> torch.Tensor:
    op = "gan_loss"
    _check.tensor(op, logits=logits)
    _check.choice(op, "kind", kind, ("bce", "hinge", "wasserstein", "lsgan"))
    _check.flag(op, "real", real)
    _check.flag(op, "generator", generator)
    if generator and not real:
        raise ValueError(f"{op}: real must be True with generator=True: a generator wants its images to pass for real")
    if kind == "bce":
        return bce_with_logits_loss(logits, torch.full_like(logits, float(real)))
    if kind == "lsgan":
        return (logits - float(real)).square().mean()
    signed = -logits if real else logits
    if kind == "hinge" and not generator:
        return F.relu(1 + signed).mean()
    return signed.mean()

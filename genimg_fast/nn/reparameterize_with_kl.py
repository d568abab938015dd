# SPDX-License-Identifier: MIT
"""The sampling layer of a variational autoencoder that gives the KL divergence too."""

from __future__ import annotations

import torch
from torch import nn

from genimg_fast import functional
from genimg_fast.ops import _check


class ReparameterizeWithKL(nn.Module):
    """`functional.reparameterize_with_kl` of (mu, logvar): returns (z, kl), in training and in eval alike.

    Args:
        reduction: of the divergence: "none", "mean", "sum" or "batchmean".

    Shape:
        mu, logvar: any, both the same; z the same; kl a scalar, or for "none" the same.

    Raises:
        ValueError: unknown reduction.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        _check.choice("ReparameterizeWithKL", "reduction", reduction, tuple(_check.REDUCTIONS))
        self.reduction = reduction

    def forward(
        self, mu: torch.Tensor, logvar: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A sample and its divergence; generator draws the seed of the noise, by default torch's own of mu's device."""
        return functional.reparameterize_with_kl(mu, logvar, self.reduction, generator=generator)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"

# SPDX-License-Identifier: MIT
"""The losses as modules.  Each calls the function of `genimg_fast.functional` of its name, which describes it."""

from __future__ import annotations

import torch
from torch import nn

from genimg_fast import functional
from genimg_fast._backend import may_fuse
from genimg_fast.nn.fused import Fused
from genimg_fast.ops import _check


class BCELoss(Fused, nn.BCELoss):
    """Takes the place of `torch.nn.BCELoss`: the same arguments and state, and legal under autocast."""

    _genimg_fast_plain_class = nn.BCELoss

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not may_fuse(input):
            return super().forward(input, target)
        return functional.bce_loss(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(Fused, nn.BCEWithLogitsLoss):
    """Takes the place of `torch.nn.BCEWithLogitsLoss`: the same arguments and state."""

    _genimg_fast_plain_class = nn.BCEWithLogitsLoss

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not may_fuse(input):
            return super().forward(input, target)
        return functional.bce_with_logits_loss(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class GaussianKLLoss(nn.Module):
    """`functional.gaussian_kl_loss` of (mu, logvar).

    Args:
        reduction: "none", "mean", "sum" or "batchmean".
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        _check.choice("GaussianKLLoss", "reduction", reduction, tuple(_check.REDUCTIONS))
        self.reduction = reduction

    def forward(self, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        return functional.gaussian_kl_loss(mu, logvar, self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class ELBOLoss(nn.Module):
    """`functional.elbo_loss` of (recon, target, mu, logvar): returns (total, reconstruction, kl).

    Args:
        reconstruction: "bce_with_logits", "bce" or "mse".
        beta: weight of the divergence; assign to the attribute to anneal it.
        reduction: "batchmean", "sum" or "mean".
    """

    def __init__(
        self, reconstruction: str = "bce_with_logits", beta: float = 1.0, reduction: str = "batchmean"
    ) -> None:
        super().__init__()
        _check.choice("ELBOLoss", "reconstruction", reconstruction, tuple(_check.RECONSTRUCTIONS))
        _check.choice("ELBOLoss", "reduction", reduction, ("batchmean", "sum", "mean"))
        self.reconstruction = reconstruction
        self.beta = beta
        self.reduction = reduction

    def forward(
        self, recon: torch.Tensor, target: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return functional.elbo_loss(
            recon, target, mu, logvar, reconstruction=self.reconstruction, beta=self.beta, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return f"reconstruction={self.reconstruction!r}, beta={self.beta}, reduction={self.reduction!r}"

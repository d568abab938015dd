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
    """Takes the place of `torch.nn.BCELoss`: the same arguments, state, shapes and errors, and legal under autocast."""

    _genimg_fast_plain_class = nn.BCELoss

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not may_fuse(input):
            return super().forward(input, target)
        return functional.bce_loss(input, target, self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(Fused, nn.BCEWithLogitsLoss):
    """Takes the place of `torch.nn.BCEWithLogitsLoss`: the same arguments, state, shapes and errors."""

    _genimg_fast_plain_class = nn.BCEWithLogitsLoss

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not may_fuse(input):
            return super().forward(input, target)
        return functional.bce_with_logits_loss(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class GaussianKLLoss(nn.Module):
    """`functional.gaussian_kl_loss` of (mu, logvar): ``-0.5 * (1 + logvar - mu**2 - logvar.exp())``, reduced.

    Args:
        reduction: "none", "mean" over all elements, "sum", or "batchmean": the sum divided by the size of dimension 0.

    Shape:
        mu, logvar: any, both the same, in the same floating-point dtype; the result a scalar, or for "none" the same.

    Raises:
        ValueError: unknown reduction.
        TypeError, ValueError: in forward(), an argument of the wrong dtype, shape or device.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        _check.choice("GaussianKLLoss", "reduction", reduction, tuple(_check.REDUCTIONS))
        self.reduction = reduction

    def forward(self, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        """The divergence of N(mu, exp(logvar)) from N(0, I)."""
        return functional.gaussian_kl_loss(mu, logvar, self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class ELBOLoss(nn.Module):
    """`functional.elbo_loss` of (recon, target, mu, logvar): returns (total, reconstruction, kl).

    Args:
        reconstruction: "bce_with_logits", "bce" or "mse".
        beta: weight of the divergence; assign to the attribute to anneal it.
        reduction: "batchmean", "sum" or "mean".

    Shape:
        recon, target: (N, ...), both the same. mu, logvar: (N, ...), both the same. All in the same floating-point dtype. Each
        result a scalar.

    Raises:
        ValueError: unknown reconstruction or reduction, or a beta that is not finite.
        TypeError: a beta that is no number.
        TypeError, ValueError: in forward(), an argument of the wrong dtype, shape or device.
    """

    def __init__(
        self, reconstruction: str = "bce_with_logits", beta: float = 1.0, reduction: str = "batchmean"
    ) -> None:
        super().__init__()
        _check.choice("ELBOLoss", "reconstruction", reconstruction, tuple(_check.RECONSTRUCTIONS))
        _check.choice("ELBOLoss", "reduction", reduction, ("batchmean", "sum", "mean"))
        self.reconstruction = reconstruction
        self.beta = _check.number("ELBOLoss", "beta", beta)
        self.reduction = reduction

    def forward(
        self, recon: torch.Tensor, target: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(total, reconstruction, kl), of which total is to be minimised."""
        return functional.elbo_loss(
            recon, target, mu, logvar, reconstruction=self.reconstruction, beta=self.beta, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return f"reconstruction={self.reconstruction!r}, beta={self.beta}, reduction={self.reduction!r}"

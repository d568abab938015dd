# SPDX-License-Identifier: MIT
"""Modules that take the place of their `torch.nn` counterparts and run fused."""

from genimg_fast.nn.losses import BCELoss, BCEWithLogitsLoss, ELBOLoss, GaussianKLLoss

__all__ = ["BCELoss", "BCEWithLogitsLoss", "ELBOLoss", "GaussianKLLoss"]

# SPDX-License-Identifier: MIT
"""Modules that take the place of their `torch.nn` counterparts and run fused."""

from genimg_fast.nn.batch_norm_act import BatchNormAct1d, BatchNormAct2d
from genimg_fast.nn.blocks import Conv2dBNAct, ConvTranspose2dBNAct
from genimg_fast.nn.fuse import FuseReport, fuse, unfuse
from genimg_fast.nn.losses import BCELoss, BCEWithLogitsLoss, ELBOLoss, GaussianKLLoss
from genimg_fast.nn.reparameterize import Reparameterize
from genimg_fast.nn.reparameterize_with_kl import ReparameterizeWithKL
from genimg_fast.nn.sequential import FusedSequential

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "Conv2dBNAct",
    "ConvTranspose2dBNAct",
    "ELBOLoss",
    "FuseReport",
    "FusedSequential",
    "GaussianKLLoss",
    "Reparameterize",
    "ReparameterizeWithKL",
    "fuse",
    "unfuse",
]

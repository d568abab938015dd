# SPDX-License-Identifier: MIT
"""Registers `torch.ops.genimg_fast.conv_weight_grad`, the weight gradient that the convolutions' backward passes share."""

from __future__ import annotations

from genimg_fast.ops._registration import register


def _fake(small, large, kernel_size, *geometry):
    return small.new_empty((small.shape[1], large.shape[1], *kernel_size))


register("conv_weight_grad", _fake)

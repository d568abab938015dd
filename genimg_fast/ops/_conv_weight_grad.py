# SPDX-License-Identifier: MIT
"""Registers `torch.ops.genimg_fast.conv_weight_grad`, the kernel of the weight gradient by itself, for its tests.

In training the native `block_chain_backward` calls the kernel directly.
"""

from __future__ import annotations

from genimg_fast.ops._registration import register


def _fake(small, large, kernel_size, *geometry):
    return small.new_empty((small.shape[1], large.shape[1], *kernel_size))


register("conv_weight_grad", _fake)

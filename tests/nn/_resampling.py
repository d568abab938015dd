# SPDX-License-Identifier: MIT
"""Models with an upsampling before a convolution or a mean after it, fused and plain, for the tests that compare them."""

from __future__ import annotations

import copy
from unittest import mock

import torch
from torch import nn

import genimg_fast
from genimg_fast.nn import steps


def fused_and_plain(make, dtype=torch.float64) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = make().to(dtype)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    return fused, plain


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    parameters = list(model.parameters())
    score = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    grads = torch.autograd.grad(score, [x, *parameters], allow_unused=True, materialize_grads=True)
    return [y, *grads, *model.buffers()]


def joined(model: nn.Module, x: torch.Tensor, backend: str = "native") -> bool:
    """Whether a pass of the model runs a resampling and its convolution as one."""
    made = mock.Mock(side_effect=steps.resampling_weight)
    with genimg_fast.use_backend(backend), mock.patch.object(steps, "resampling_weight", made):
        copy.deepcopy(model)(x)
    return made.called

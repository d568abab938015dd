# SPDX-License-Identifier: MIT
"""WGAN-GP needs derivatives of derivatives of whatever the critic calls: its training is that of plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import genimg_fast
from genimg_fast.functional import gan_loss, gradient_penalty
from tests import _cases
from tests.architectures.adversarial import WGANCritic, WGANGenerator


def train(generator: nn.Module, critic: nn.Module) -> list[float]:
    """Two steps of the generator, each after two of the critic."""
    torch.manual_seed(1)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2, betas=(0.0, 0.9)) for m in (generator, critic)]
    losses = []

    def step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    for i in range(2):
        for j in range(2):
            real = _cases.randn((4, 3, 16, 16), torch.float64, seed=2 * i + j).tanh()
            fake = generator(torch.randn(4, 6, dtype=torch.float64)).detach()
            objective = gan_loss(critic(real), True, "wasserstein") + gan_loss(critic(fake), False, "wasserstein")
            step(optimizers[1], objective + 10 * gradient_penalty(critic, real, fake))
        fake = generator(torch.randn(4, 6, dtype=torch.float64))
        step(optimizers[0], gan_loss(critic(fake), True, "wasserstein", generator=True))
    return losses


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_trains_as_plain_pytorch_does(backend):
    plain = WGANGenerator().double(), WGANCritic().double()
    fused = copy.deepcopy(plain)
    assert all(genimg_fast.fuse(model).fused for model in fused)
    with genimg_fast.use_backend("reference"):
        expected = train(*plain)
    with genimg_fast.use_backend(backend):
        torch.testing.assert_close(train(*fused), expected)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())

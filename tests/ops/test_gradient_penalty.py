# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from torch import nn

from genimg_fast import use_backend
from genimg_fast.functional import bce_with_logits_loss, gradient_penalty
from tests import _cases

REAL, FAKE = _cases.randn((6, 2, 3, 3), seed=1), _cases.randn((6, 2, 3, 3), seed=2)


def test_of_a_linear_discriminator_is_known():
    weight = _cases.randn((2, 3, 3), seed=3)
    penalty = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), REAL, FAKE)
    torch.testing.assert_close(penalty, (weight.norm() - 1).square())


def test_is_taken_between_real_and_fake():
    seen = []

    def discriminator(x):
        seen.append(x.detach())
        return x.square().sum((1, 2, 3)) / 2  # its gradient is x itself

    penalty = gradient_penalty(discriminator, REAL, FAKE)
    torch.testing.assert_close(penalty, (seen[0].flatten(1).norm(dim=1) - 1).square().mean())
    share = (seen[0] - FAKE) / (REAL - FAKE)
    torch.testing.assert_close(share, share[:, :1, :1, :1].expand_as(share), atol=1e-3, rtol=0)
    assert 0 <= share.min() <= share.max() <= 1.001
    assert share.amax((1, 2, 3)).std() > 0.05


def test_the_generator_decides_where():
    def penalty(seed):
        discriminator = lambda x: x.square().sum((1, 2, 3))  # noqa: E731
        return gradient_penalty(discriminator, REAL, FAKE, generator=torch.Generator().manual_seed(seed))

    assert penalty(0) == penalty(0)
    assert penalty(0) != penalty(1)


def test_trains_the_discriminator_and_nothing_else():
    """Second derivatives against finite differences of the penalty in the discriminator's weight."""
    real, fake = REAL.double().requires_grad_(), FAKE.double().requires_grad_()
    weight = _cases.randn((18, 4), torch.float64, seed=3).requires_grad_()
    target = torch.full((6, 4), 0.3, dtype=torch.float64)

    def penalty(weight):
        def discriminator(x):  # ends in a loss of this library, whose backward is differentiated again
            with use_backend("native"):  # "auto" leaves so few values to PyTorch
                return bce_with_logits_loss(x.flatten(1) @ weight, target, reduction="none")

        return gradient_penalty(discriminator, real, fake, generator=torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(penalty, weight)
    penalty(weight).backward()
    assert real.grad is None
    assert fake.grad is None


def test_can_be_looked_at_without_grad():
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(18, 1))
    with torch.no_grad():
        penalty = gradient_penalty(discriminator, REAL, FAKE)
    assert penalty > 0
    assert not penalty.requires_grad


@pytest.mark.parametrize(
    ("real", "fake", "error", "message"),
    [
        (REAL, FAKE[:3], ValueError, r"gradient_penalty: fake has shape \(3, 2, 3, 3\) but real has \(6, 2, 3, 3\)"),
        (REAL, FAKE.double(), TypeError, "fake is torch.float64 but real is torch.float32"),
        (torch.zeros(3), torch.zeros(3), ValueError, r"must be batches \(N, ...\), got shape \(3,\)"),
        (REAL, None, TypeError, "fake must be a Tensor, got NoneType"),
    ],
)
def test_bad_input_gets_one_clear_line(real, fake, error, message):
    with pytest.raises(error, match=message):
        gradient_penalty(lambda x: x, real, fake)


@pytest.mark.parametrize(
    ("discriminator", "message"),
    [
        (lambda x: x.mean(), r"must give scores of each image, \(N, ...\) with N = 6, got shape \(\)"),
        (lambda x: (x,), r"must give scores of each image, \(N, ...\) with N = 6, got tuple"),
        (lambda x: x.detach(), "the scores of discriminator do not depend on the images"),
        (lambda x: torch.ones(6, requires_grad=True), "the scores of discriminator do not depend on the images"),
    ],
)
def test_scores_that_have_no_penalty(discriminator, message):
    with pytest.raises(ValueError, match=f"^gradient_penalty: .*{message}"):
        gradient_penalty(discriminator, REAL, FAKE)


def test_a_generator_that_is_none():
    with pytest.raises(TypeError, match=r"^gradient_penalty: generator must be a torch.Generator, got int"):
        gradient_penalty(lambda x: x, REAL, FAKE, generator=3)


def test_a_discriminator_that_is_none():
    with pytest.raises(
        TypeError, match=r"^gradient_penalty: discriminator must be a module or a function, got NoneType"
    ):
        gradient_penalty(None, torch.zeros(2, 3), torch.zeros(2, 3))

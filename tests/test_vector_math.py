# SPDX-License-Identifier: MIT
"""The float functions of csrc/cpu/vec.h and vec_bce.h against float64, in units in the last place.

They are reached through losses, or a normalisation, chosen so that nothing but the function under test rounds.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genimg_fast import use_backend
from genimg_fast.functional import batch_norm_act, bce_loss, bce_with_logits_loss, gaussian_kl_loss


@pytest.fixture(autouse=True)
def on_the_kernels():
    """ "auto" leaves a few values to PyTorch."""
    with use_backend("native"):
        yield


def floats(low: float, high: float, count: int = 1_000_000) -> torch.Tensor:
    """`count` floats spread over [low, high] by bit pattern: as many between 0.5 and 1 as between 1 and 2."""
    ends = np.array([low, high], np.float32).view(np.int32)
    return torch.from_numpy(np.linspace(*sorted(ends), count).astype(np.int32).view(np.float32))


def worst_ulp(actual: torch.Tensor, exact: np.ndarray) -> float:
    _, exponent = np.frexp(exact)
    return (np.abs(actual.double().numpy() - exact) / np.ldexp(1.0, np.maximum(exponent, -125) - 24)).max()


def gradient(function, input: torch.Tensor) -> torch.Tensor:
    input = input.clone().requires_grad_()
    return torch.autograd.grad(function(input).sum(), input)[0]


def sigmoid_by_gradient(x):
    return gradient(lambda x: bce_with_logits_loss(x, torch.zeros_like(x), reduction="none"), x)


def exp_by_gradient(x):
    """exp(x) - 1, which is exp(x) in float for x > 18."""
    return gradient(lambda x: 2 * gaussian_kl_loss(torch.zeros_like(x), x, "none"), x)


def log_by_loss(x):
    return -bce_loss(x, torch.ones_like(x), reduction="none")


def log_of_rest_by_loss(x):
    return -bce_loss(x, torch.zeros_like(x), reduction="none")


def log1p_of_exp_by_loss(x):
    return bce_with_logits_loss(x, torch.ones_like(x), reduction="none")


def activation(name):
    def function(x):
        # (x - 0) / sqrt(1 + 0)
        return batch_norm_act(x[:, None], torch.zeros(1), torch.ones(1), eps=0.0, activation=name)[:, 0]

    return function


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "bound"),
    [
        (exp_by_gradient, np.exp, 18.0, 88.7, 1.1),
        (sigmoid_by_gradient, np.exp, -17.5, -87.3, 1.1),  # 1 / (1 + exp(-x)) rounds to exp(x) there
        (sigmoid_by_gradient, sigmoid, -1e-30, -87.3, 2.3),
        (sigmoid_by_gradient, sigmoid, 1e-30, 100.0, 2.3),
        (activation("sigmoid"), sigmoid, -1e-30, -87.3, 2.3),
        (activation("sigmoid"), sigmoid, 1e-30, 100.0, 2.3),
        (activation("tanh"), np.tanh, -1e-4, -20.0, 1.4),
        (activation("tanh"), np.tanh, 1e-4, 20.0, 1.4),
        (activation("tanh"), np.tanh, 1e-38, 1e-4, 1.0),
        (log_by_loss, np.log, 1e-38, 1.0, 0.8),
        (log_by_loss, np.log, 1e-43, 1e-38, 0.8),
        (log_of_rest_by_loss, lambda x: np.log1p(-x), 1e-30, 1 - 2**-24, 1.5),
        (log1p_of_exp_by_loss, lambda x: np.log1p(np.exp(-x)), 1e-30, 87.0, 3.0),  # of both functions together
    ],
)
def test_error_in_ulp(isa, function, exact, low, high, bound):
    x = floats(low, high)
    assert worst_ulp(function(x), np.maximum(exact(x.double().numpy()), -100)) < bound


def test_ends_of_the_range(isa):
    ends = torch.tensor([0.0, -0.0, 20.0, -20.0, 1e30, -1e30, float("inf"), -float("inf"), 1e-45])
    torch.testing.assert_close(activation("tanh")(ends), ends.tanh(), rtol=0, atol=0)
    assert activation("tanh")(torch.tensor([float("nan")])).isnan().all()
    inf = float("inf")
    large = torch.tensor([88.7, 88.8, 89.0, 200.0, inf])
    torch.testing.assert_close(exp_by_gradient(large), large.double().exp().float(), rtol=1e-6, atol=0)
    denormal = torch.tensor([-88.0, -95.0, -103.0, -110.0, -inf])
    torch.testing.assert_close(sigmoid_by_gradient(denormal), denormal.double().exp().float(), rtol=0, atol=2e-45)


def test_a_nan_stays_one_whatever_its_bits(isa):
    """Under `make sanitize` too, where arithmetic on the bits must not overflow."""
    bits = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFFFFFFFF] * 8, np.uint32)
    nans = torch.from_numpy(bits.view(np.float32))
    functions = [activation("sigmoid"), activation("tanh"), exp_by_gradient, sigmoid_by_gradient, log1p_of_exp_by_loss]
    for function in functions:
        assert function(nans).isnan().all()

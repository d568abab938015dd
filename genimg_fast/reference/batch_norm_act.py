# SPDX-License-Identifier: MIT
"""activation(batch_norm(input)) in plain PyTorch (Ioffe and Szegedy 2015)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from genimg_fast.reference.activation import activate, activate_backward


def batch_norm_act(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    normalized = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return activate(normalized, activation, negative_slope)


def batch_norm_act_backward(
    grad: torch.Tensor,
    input: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    training: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of input, weight and bias.  In training, mean and var are those of input and are recomputed from it."""
    count = input.numel() // max(input.shape[1], 1)
    if training and count:
        var, mean = torch.var_mean(input.to(mean.dtype), over(input), correction=0)
    elif training:  # NaN, from which no gradient of theirs, which is zero, would come back
        mean, var = torch.zeros_like(mean), torch.ones_like(var)
    terms = GradientTerms.of(grad, input, mean, var, weight, bias, eps, activation, negative_slope)
    grad_weight, grad_bias = terms.sums()
    means = (grad_weight / count, grad_bias / count) if training and count else None
    return terms.grad_input(means).to(input.dtype), grad_weight, grad_bias


def over(input: torch.Tensor) -> list[int]:
    """The dimensions that statistics are taken over."""
    return [d for d in range(input.dim()) if d != 1]


def along(input: torch.Tensor, per_channel: torch.Tensor) -> torch.Tensor:
    """(C,), in a shape that broadcasts over input."""
    return per_channel.view([-1 if d == 1 else 1 for d in range(input.dim())])


class GradientTerms(NamedTuple):
    """What the gradients are made of, each of input's shape or broadcast over it."""

    dy: torch.Tensor
    """The gradient before activation."""
    normalized: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def of(
        grad: torch.Tensor,
        input: torch.Tensor,
        mean: torch.Tensor,
        var: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        activation: str,
        negative_slope: float,
    ) -> GradientTerms:
        inverse_std = along(input, (var + eps).rsqrt())
        normalized = (input.to(mean.dtype) - along(input, mean)) * inverse_std
        scaled = normalized if weight is None else normalized * along(input, weight)
        affine = scaled if bias is None else scaled + along(input, bias)
        dy = activate_backward(grad.to(mean.dtype), affine, activation, negative_slope)
        return GradientTerms(dy, normalized, inverse_std if weight is None else inverse_std * along(input, weight))

    def sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of weight and bias."""
        return (self.dy * self.normalized).sum(over(self.dy)), self.dy.sum(over(self.dy))

    def grad_input(self, means: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """`means`: the sums, divided by the number of values that mean and var are of; None where those are constants."""
        if means is None:
            return self.dy * self.scale
        mean_grad_weight, mean_grad_bias = (along(self.dy, m) for m in means)
        return (self.dy - (mean_grad_bias + self.normalized * mean_grad_weight)) * self.scale

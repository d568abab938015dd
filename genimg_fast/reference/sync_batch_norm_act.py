# SPDX-License-Identifier: MIT
"""activation(batch_norm(input)) with the statistics of all processes' inputs, in plain PyTorch.

`sync_batch_norm_act` says what is computed, and has derivatives of any order.  The stages below it are one forward and one
backward pass of it, cut where the processes talk, each as the native operator of the same work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from genimg_fast.reference.activation import activate
from genimg_fast.reference.batch_norm_act import along, over


def sync_batch_norm_act(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    all_reduce: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`all_reduce`: the sum over all processes, differentiable."""
    x = input.to(statistics_dtype(input))
    count = all_reduce(x.new_tensor(float(values_per_channel(input)))).clamp(min=1)
    mean = all_reduce(x.sum(over(x))) / count
    var = all_reduce((x - along(x, mean)).square().sum(over(x))) / count
    return normalize_act(input, mean, var, weight, bias, eps, activation, negative_slope)


def statistics(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the biased variance of each channel, in float64: joined, they are subtracted."""
    x = input.to(statistics_dtype(input))
    shift = x.mean(over(x))  # rounded: what it misses is the mean of the rest
    var, rest = torch.var_mean(x - along(x, shift), over(x), correction=0)
    return shift.double() + rest.double(), var.double()


def join(
    counts: torch.Tensor, means: torch.Tensor, variances: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count, mean and biased variance of the union of sets, of which these are theirs (Chan, Golub and LeVeque 1983).

    Exact where the means are far larger than the deviations, which sums of squares are not.

    Args:
        counts: (sets, 1).
        means, variances: (sets, C); zeros where the count is.
    """
    total = counts.sum()
    of_some = total.clamp(min=1)
    mean = (counts * means).sum(0) / of_some
    return total, mean, (counts * (variances + (means - mean).square())).sum(0) / of_some


def normalize_act(
    input: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
) -> torch.Tensor:
    normalized = (input.to(mean.dtype) - along(input, mean)) * along(input, (var + eps).rsqrt())
    if weight is not None:
        normalized = normalized * along(input, weight)
    if bias is not None:
        normalized = normalized + along(input, bias)
    return activate(normalized, activation, negative_slope).to(input.dtype)


def values_per_channel(input: torch.Tensor) -> int:
    return input.numel() // max(input.shape[1], 1)


def statistics_dtype(input: torch.Tensor) -> torch.dtype:
    return torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype

# SPDX-License-Identifier: MIT
"""Batch normalisation and activation as one module."""

from __future__ import annotations

import torch
from torch import nn

from genimg_fast.nn.norm import run_norm
from genimg_fast.ops import _check


class _BatchNormAct(nn.modules.batchnorm._BatchNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "relu",
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        _check.choice(type(self).__name__, "activation", activation, tuple(_check.ACTIVATIONS))
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return run_norm(self, input, self.activation, self.negative_slope)

    def extra_repr(self) -> str:
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation!r}{slope}"


class BatchNormAct1d(_BatchNormAct, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` followed by an activation, in one pass; `state_dict` is BatchNorm1d's.

    Equal to ``nn.Sequential(nn.BatchNorm1d(num_features, ...), <activation>)``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as of `torch.nn.BatchNorm1d`.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".

    Shape:
        (N, C) or (N, C, L), the output like the input.

    Raises:
        ValueError: for another number of dimensions, an unknown activation, or a single value per channel in training.
    """


class BatchNormAct2d(_BatchNormAct, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` followed by an activation, in one pass; `state_dict` is BatchNorm2d's.

    Equal to ``nn.Sequential(nn.BatchNorm2d(num_features, ...), <activation>)``.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as of `torch.nn.BatchNorm2d`.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".

    Shape:
        (N, C, H, W), the output like the input, memory format included.

    Raises:
        ValueError: for another number of dimensions, an unknown activation, or a single value per channel in training.
    """

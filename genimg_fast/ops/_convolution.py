# SPDX-License-Identifier: MIT
"""What the two convolution ops share: the checks of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genimg_fast.ops import _check


def pair(op: str, name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """An int or two of them as (height, width), like torch's own arguments."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or any(v < minimum for v in values):
        raise ValueError(f"{op}: {name} must be one or two integers >= {minimum}, got {value!r}")
    return values  # type: ignore[return-value]


def check_arguments(
    op: str,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: dict[str, torch.Tensor | None],
    training: bool,
    groups: int,
    activation: str,
    *,
    transposed: bool,
) -> None:
    """All checks but those of the geometry.  `norm`: running_mean, running_var, bn_weight and bn_bias by name."""
    _check.tensor(op, input=input, weight=weight, bias=bias, **norm)
    _check.same_dtype(op, input=input, weight=weight, bias=bias)
    if weight.dim() != 4:
        raise ValueError(f"{op}: weight must have 4 dimensions, got shape {tuple(weight.shape)}")
    if input.dim() not in (3, 4):
        raise ValueError(f"{op}: input must be (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)}")
    in_channels, out_channels = (
        (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
    )
    if input.shape[-3] != in_channels:
        raise ValueError(
            f"{op}: input has {input.shape[-3]} channels but weight of shape {tuple(weight.shape)} takes {in_channels}"
        )
    for name, value in {"bias": bias, **norm}.items():
        _check.shape(op, name, value, (out_channels,), "one value an output channel")
    if (norm["running_mean"] is None) != (norm["running_var"] is None):
        raise ValueError(f"{op}: running_mean and running_var must be given together or not at all")
    if input.dim() == 3 and (training or norm["running_mean"] is not None):
        raise ValueError(
            f"{op}: batch normalisation needs a batch: input must be (N, C, H, W), got {tuple(input.shape)}"
        )
    _check.choice(op, "activation", activation, _check.ACTIVATION_NAMES)

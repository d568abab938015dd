# SPDX-License-Identifier: MIT
"""The autocast rules, applied where a public function is entered, so that native and reference obey the same ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def _with_casts(target_dtype: Callable[[str], torch.dtype]) -> Callable[[Function], Function]:
    def decorator(function: Function) -> Function:
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            first = args[0] if args else next(iter(kwargs.values()), None)
            device_type = first.device.type if isinstance(first, torch.Tensor) else ""
            if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
                return function(*args, **kwargs)
            dtype = target_dtype(device_type)

            def cast(value):
                # float64 stays as it is, as under torch's own rules
                eligible = (
                    isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
                )
                return value.to(dtype) if eligible else value

            with torch.autocast(device_type, enabled=False):
                return function(*(cast(a) for a in args), **{name: cast(value) for name, value in kwargs.items()})

        return wrapper  # type: ignore[return-value]

    return decorator


float32_under_autocast = _with_casts(lambda device_type: torch.float32)
"""Losses and noise: computed in float32 whatever the autocast dtype, as torch does for its losses."""

low_precision_under_autocast = _with_casts(torch.get_autocast_dtype)
"""Convolutions: computed in the autocast dtype."""

# SPDX-License-Identifier: MIT
"""The autocast rules, applied where a public function is entered, so that native and reference obey the same ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def _with_casts(
    target_dtype: Callable[[str], torch.dtype], only: tuple[str, ...] | None = None
) -> Callable[[Function], Function]:
    """`only`: the names of the function's first arguments, if no others are to be cast."""

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
                return function(
                    *(cast(a) if only is None or i < len(only) else a for i, a in enumerate(args)),
                    **{name: cast(a) if only is None or name in only else a for name, a in kwargs.items()},
                )

        return wrapper  # type: ignore[return-value]

    return decorator


float32_under_autocast = _with_casts(lambda device_type: torch.float32)
"""Losses and noise: computed in float32 whatever the autocast dtype, as torch does for its losses."""

low_precision_under_autocast = _with_casts(torch.get_autocast_dtype, only=("input", "weight", "bias"))
"""Convolutions: computed in the autocast dtype.  The batch normalisation after it keeps its own, as under torch's rules:
its running statistics are updated in place."""

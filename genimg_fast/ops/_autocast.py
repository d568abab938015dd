# SPDX-License-Identifier: MIT
"""The autocast rules, applied where a public function is entered, so that native and reference obey the same ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from genimg_fast import _backend
from genimg_fast.ops._check import HALF_TYPES
from genimg_fast.ops._half_types import multiplies, multiplies_matrices

Function = TypeVar("Function", bound=Callable[..., Any])


def autocasts(value: Any) -> bool:
    """Whether autocast is on for a tensor on this device."""
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():  # which is told at once
        return False
    device_type = value.device.type if isinstance(value, torch.Tensor) else ""
    return device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    # float64 stays as it is, as under torch's own rules
    eligible = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if eligible else value


def float32_under_autocast(function: Function) -> Function:
    """Losses and noise: computed in float32 whatever the autocast dtype, as torch does for its losses."""

    @functools.wraps(function)
    def wrapper(first, *args, **kwargs):
        if not autocasts(first):
            return function(first, *args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(
                *(_cast(a, torch.float32) for a in (first, *args)),
                **{n: _cast(v, torch.float32) for n, v in kwargs.items()},
            )

    return wrapper  # type: ignore[return-value]


def float32_loss_under_autocast(function: Function) -> Function:
    """The same for losses whose kernels read half types as they are and give a loss in float32: the function is told that by
    `float32_loss=True`, and casts what is not for those kernels itself."""

    @functools.wraps(function)
    def wrapper(first, *args, **kwargs):
        if not autocasts(first):
            return function(first, *args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs, float32_loss=True)

    return wrapper  # type: ignore[return-value]


def to_float32(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    return tuple(_cast(t, torch.float32) for t in tensors)


def convolution_dtype(input: torch.Tensor) -> torch.dtype:
    """Of what a convolution makes of it."""
    if not autocasts(input) or input.dtype == torch.float64:
        return input.dtype
    return torch.get_autocast_dtype(input.device.type)


def kernel_dtype(input: torch.Tensor) -> torch.dtype:
    """In which a convolution of it is computed.

    What has a half type is computed in float32 on the CPU, whose kernels have none, and rounded: that errs less than PyTorch does,
    and takes less time unless PyTorch multiplies matrices of half types.  Weights that have a half type themselves would be
    converted in each pass, which takes less time only where PyTorch emulates half types.
    """
    dtype = convolution_dtype(input)
    if dtype not in HALF_TYPES or input.device.type != "cpu":
        return dtype
    pays = not (multiplies_matrices() if autocasts(input) else multiplies(dtype))
    widens = {"reference": False, "native": True, "auto": pays}[_backend.current_backend()]
    return torch.float32 if widens else dtype


def half_in_float32(input: torch.Tensor) -> bool:
    """Whether it has a half type, without autocast, and is to be computed in float32."""
    return kernel_dtype(input) is not input.dtype and not autocasts(input)


def replaces_half_type(input: torch.Tensor) -> bool:
    """Whether the kernels would compute in float32 what PyTorch computes in a half type, by instructions of its own."""
    dtype = convolution_dtype(input)
    return dtype is not kernel_dtype(input) and multiplies(dtype)


def to_kernel_dtype(*tensors: torch.Tensor | None, norm: Iterable[torch.Tensor | None] = ()) -> tuple[Any, ...]:
    """A convolution's input, weight and bias.  Batch normalisation then follows its input, as in torch.

    Args:
        norm: the tensors of the batch normalisation.  Where they have a half type, all is left to PyTorch.  Nobody has checked yet
            that they are tensors.
    """
    input: Any = tensors[0]
    if not autocasts(input):
        return tensors
    of_kernels = input.dtype != torch.float64 and all(getattr(t, "dtype", None) not in HALF_TYPES for t in norm)
    dtype = kernel_dtype(input) if of_kernels else torch.get_autocast_dtype(input.device.type)
    return tuple(_cast(t, dtype) for t in tensors)

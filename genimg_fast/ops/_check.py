# SPDX-License-Identifier: MIT
"""The argument checks of all ops, on all backends: one line that names the argument, what came and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch

HALF_TYPES = (torch.float16, torch.bfloat16)
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "batchmean": 3}  # the native code's numbers (csrc/common/reduction.h)
ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4}  # csrc/common/activation.h
RECONSTRUCTIONS = {"bce_with_logits": 0, "bce": 1, "mse": 2}  # csrc/common/reconstruction.h


def tensor(op: str, **tensors: torch.Tensor | None) -> None:
    """Each is a floating-point tensor (or None), and all are on the device of the first."""
    on_device(op, **tensors)
    for name, value in tensors.items():
        if value is not None and not value.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}")


def on_device(op: str, **tensors: torch.Tensor | None) -> None:
    """Each is a tensor (or None, but for the first), and all are on the device of the first."""
    first_name = next(iter(tensors))
    device = getattr(tensors[first_name], "device", None)
    for name, value in tensors.items():
        if value is None and name != first_name:
            continue
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
        if value.device != device:
            raise ValueError(f"{op}: {name} is on {value.device} but {first_name} is on {device}; move one of them")


def required(op: str, **tensors: torch.Tensor | None) -> None:
    """None is missing: `tensor` lets that pass, for the arguments that are optional."""
    for name, value in tensors.items():
        if value is None:
            raise TypeError(f"{op}: {name} must be a Tensor, got NoneType")


def same_dtype(op: str, **tensors: torch.Tensor | None) -> None:
    first_name = next(iter(tensors))
    dtype = tensors[first_name].dtype  # type: ignore[union-attr]
    for name, value in tensors.items():
        if value is not None and value.dtype != dtype:
            raise TypeError(f"{op}: {name} is {value.dtype} but {first_name} is {dtype}; they must be the same")


def dtype_or_float32(op: str, input: torch.Tensor, **tensors: torch.Tensor | None) -> None:
    """What normalises has input's dtype; float32 will do where that is a half type."""
    for name, value in tensors.items():
        if value is not None and value.dtype != input.dtype:
            if input.dtype not in HALF_TYPES:
                raise TypeError(f"{op}: {name} is {value.dtype} but input is {input.dtype}; they must be the same")
            if value.dtype != torch.float32:
                raise TypeError(f"{op}: {name} is {value.dtype}; with a {input.dtype} input it must be that or float32")


def same_shape(op: str, **tensors: torch.Tensor) -> None:
    required(op, **tensors)
    (first_name, first), *rest = tensors.items()
    for name, value in rest:
        if value.shape != first.shape:
            raise ValueError(
                f"{op}: {name} has shape {tuple(value.shape)} but {first_name} has {tuple(first.shape)}; they must be equal"
            )


def shape(op: str, name: str, value: torch.Tensor | None, expected: tuple[int, ...], why: str) -> None:
    if value is not None and value.shape != expected:
        raise ValueError(f"{op}: {name} must have shape {expected} ({why}), got {tuple(value.shape)}")


def expands(op: str, like: torch.Tensor, like_name: str, **tensors: torch.Tensor | None) -> None:
    """Each (or None) broadcasts to the shape of `like`."""
    for name, value in tensors.items():
        if value is None:
            continue
        sizes = zip(reversed(value.shape), reversed(like.shape), strict=False)
        if value.dim() > like.dim() or any(size not in (1, expected) for size, expected in sizes):
            raise ValueError(
                f"{op}: {name} has shape {tuple(value.shape)}, which does not broadcast to {like_name}'s {tuple(like.shape)}"
            )


def is_number(value: object) -> bool:
    """As Python has it: NumPy's will do, a tensor not."""
    return isinstance(value, (int, float, Real))


def number(op: str, name: str, value: float) -> float:
    """Finite, and as Python has it."""
    _any_number(op, name, value)
    # torch.compile has no value for a number that varies
    if not torch.compiler.is_compiling() and not math.isfinite(value):
        raise ValueError(f"{op}: {name} must be finite, got {value}")
    return value if isinstance(value, (int, float)) else float(value)


def _any_number(op: str, name: str, value: object) -> None:
    if not is_number(value):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")


def flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {type(value).__name__}")


def generator(op: str, value: object) -> None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"{op}: generator must be a torch.Generator, got {type(value).__name__}")


def normalization(op: str, training: bool, momentum: float, eps: float) -> None:
    flag(op, "training", training)
    _any_number(op, "momentum", momentum)  # which may be NaN, as in PyTorch
    number(op, "eps", eps)
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"{op}: eps must be {'> 0 when training' if training else '>= 0'}, got {eps}")


def activation(op: str, name: str, negative_slope: float) -> None:
    choice(op, "activation", name, tuple(ACTIVATIONS))
    _any_number(op, "negative_slope", negative_slope)


def choice(op: str, name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def name_of(code: int, codes: dict[str, int]) -> str:
    """The name that stands for `code` in one of the tables above."""
    return next(name for name, number in codes.items() if number == code)

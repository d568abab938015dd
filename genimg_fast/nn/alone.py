# SPDX-License-Identifier: MIT
"""Layers that run as a fused call each by itself, wherever and however they are called."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from genimg_fast.nn.fused import Fused, plain_class
from genimg_fast.nn.layers import why_not_convolution, why_not_fused, why_not_norm
from genimg_fast.nn.norm import FusedSyncBatchNorm, as_in_torch
from genimg_fast.nn.sequential import run_steps
from genimg_fast.nn.steps import Step


class _Alone(Fused):
    """Has the names of the class that it takes the place of: tools write them into files, and look layers up by them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        of = plain_class(cls)
        if of is not cls:
            cls.__module__, cls.__qualname__, cls.__doc__ = of.__module__, of.__qualname__, of.__doc__
            cls.__name__ = of.__name__
            cls._genimg_fast_made_by = _alone, (of,)  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> Any:
        if plain_class(type(self)) is type(self):  # a subclass that somebody made of it
            return super().__reduce_ex__(protocol)
        # those before 2 name the class, by a name that is another's
        constructor, arguments, *state = cast("tuple[Any, ...]", super().__reduce_ex__(max(protocol, 2)))
        if constructor is copyreg.__newobj__:  # type: ignore[attr-defined]
            return _new, (plain_class(type(self)),), *state
        return constructor, arguments, *state


def _new(cls: type[nn.Module]) -> nn.Module:
    """An instance without state, for pickle."""
    alone = _alone(cls)
    return alone.__new__(alone)


def _alone(cls: type[nn.Module]) -> type[nn.Module]:
    return ALONE[cls]


# A class's own methods are named, and none of the fused class is called: whoever holds forward() may call it after `unfuse`.


class FusedConv2d(_Alone, nn.Conv2d):
    """`torch.nn.Conv2d`, run by `functional.conv2d_bn_act`."""

    _genimg_fast_plain_class = nn.Conv2d

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _run_convolution(self, "conv2d_bn_act", nn.Conv2d.forward, input)


class FusedConvTranspose2d(_Alone, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d`, run by `functional.conv_transpose2d_bn_act` where no output_size is given."""

    _genimg_fast_plain_class = nn.ConvTranspose2d

    def forward(self, input: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        if output_size is not None:
            return as_in_torch(self, nn.ConvTranspose2d.forward, input, output_size)
        return _run_convolution(self, "conv_transpose2d_bn_act", nn.ConvTranspose2d.forward, input)


class FusedBatchNorm1d(_Alone, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, run by `functional.batch_norm_act`."""

    _genimg_fast_plain_class = nn.BatchNorm1d

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _run_norm(self, nn.BatchNorm1d.forward, input)


class FusedBatchNorm2d(_Alone, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, run by `functional.batch_norm_act`."""

    _genimg_fast_plain_class = nn.BatchNorm2d

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _run_norm(self, nn.BatchNorm2d.forward, input)


class FusedInstanceNorm2d(_Alone, nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d`, run by `functional.batch_norm_act`."""

    _genimg_fast_plain_class = nn.InstanceNorm2d

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _run_norm(self, nn.InstanceNorm2d.forward, input)


def _run_convolution(layer: Any, kind: str, forward: Callable[..., Any], input: torch.Tensor) -> torch.Tensor:
    return run_steps([layer], partial(_plan_convolution, layer, kind), partial(as_in_torch, layer, forward), input)


def _plan_convolution(layer: Any, kind: str) -> list[Step]:
    fuses = not (why_not_convolution(layer) or why_not_fused(layer))
    return [Step(("",), kind, "", (layer,))] if fuses else []


def _run_norm(layer: Any, forward: Callable[..., Any], input: torch.Tensor) -> torch.Tensor:
    return run_steps([layer], partial(_plan_norm, layer), partial(as_in_torch, layer, forward), input)


def _plan_norm(layer: Any) -> list[Step]:
    fuses = not (why_not_norm(layer) or why_not_fused(layer))
    return [Step(("",), "batch_norm_act", "", (layer,))] if fuses else []


ALONE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: FusedConv2d,
    nn.ConvTranspose2d: FusedConvTranspose2d,
    nn.BatchNorm1d: FusedBatchNorm1d,
    nn.BatchNorm2d: FusedBatchNorm2d,
    nn.InstanceNorm2d: FusedInstanceNorm2d,
    nn.SyncBatchNorm: FusedSyncBatchNorm,
}

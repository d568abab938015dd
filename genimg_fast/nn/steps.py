# SPDX-License-Identifier: MIT
"""Which layers run as one call when they feed each other: the plan, and the arguments of the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from genimg_fast import _backend
from genimg_fast._block import Block, Geometry
from genimg_fast.nn.layers import (
    CONVOLUTIONS,
    NORMS,
    Call,
    activation_of,
    class_of,
    doubles,
    halves,
    padding_of,
    pads_edge,
    passes_through,
    why_must_be_called,
    why_not_head,
    why_not_norm,
)
from genimg_fast.nn.norm import FusedSyncBatchNorm, joins_processes, norm_arguments, parameter, run_norm
from genimg_fast.ops._speed import reordering_pays
from genimg_fast.ops.resampling_weight import resampling_weight

REORDERED = "reordered"
"""The kind of a step whose two layers, a convolution of kernel 1 and a resampling by two, are called in the order that costs less."""


class Step(NamedTuple):
    """Layers that run together."""

    names: tuple[str, ...]
    kind: str | None
    """The function of `genimg_fast.functional` that runs them, or `REORDERED`; None where the one layer is called as it is."""
    reason: str
    """Why the layer is called as it is; empty if fused."""
    layers: tuple[Any, ...]


def plan(layers: Sequence[tuple[str, Any]]) -> list[Step]:
    """The steps in which the named layers run, each on the output of the one before; none for layers that do nothing.

    It is drawn up anew in each pass, at a microsecond or so a layer: layers and their hooks may change at any time.
    """
    if _has_any_global_hook():
        return [Step((name,), None, "hooks are registered for all modules", (layer,)) for name, layer in layers]
    layers = [(name, layer) for name, layer in layers if not passes_through(layer)]
    steps: list[Step] = []
    start = 0
    while start < len(layers):
        step = _next_step(layers, start)
        steps.append(step)
        start += len(step.layers)
    return steps


def _next_step(layers: Sequence[tuple[str, Any]], start: int) -> Step:
    following = [layer for _, layer in layers[start : start + 3]]
    if commutes(following):
        names, together = zip(*layers[start : start + 2], strict=True)
        return Step(names, REORDERED, "", together)
    first = start + before_convolution(following)
    name, head = layers[first]
    if reason := why_not_head(head):
        return Step((name,), None, reason, (head,))
    end = first + 1
    kind = class_of(head)
    if first == start and end < len(layers) and _joins_mean(head, layers[end][1]):
        end += 1
    if kind in CONVOLUTIONS and end < len(layers):
        follower = layers[end][1]
        if _may_follow_convolution(follower) and not why_must_be_called(follower):
            end += 1
    if end < len(layers) and activation_of(layers[end][1]) and not why_must_be_called(layers[end][1]):
        end += 1
    names, together = zip(*layers[start:end], strict=True)
    if first > start:
        return Step(names, "conv_transpose2d_bn_act", "", together)
    if kind in CONVOLUTIONS:
        if len(together) == 1 and (reason := _why_not_alone(head)):
            return Step(names, None, f"{reason}, and nothing follows that fuses", together)
        return Step(names, CONVOLUTIONS[kind], "", together)
    return Step(names, "sync_batch_norm_act" if joins_processes(head) else "batch_norm_act", "", together)


def before_convolution(layers: Sequence[Any]) -> int:
    """How many layers stand before a convolution that is one transposed convolution with them, of `ops.resampling_weight`: an
    upsampling and, perhaps, a padding; 0 where the first layers are not these."""
    if not doubles(layers[0]) or why_must_be_called(layers[0]):
        return 0
    pads = len(layers) > 1 and pads_edge(layers[1]) and not why_must_be_called(layers[1])
    conv: Any = layers[1 + pads] if len(layers) > 1 + pads else None
    if not _may_resample(conv):
        return 0
    if conv.padding_mode != "zeros":
        by_one = list(conv._reversed_padding_repeated_twice) == [1] * 4
        joins = not pads and by_one and conv.padding_mode in ("reflect", "replicate")
    else:
        joins = all(0 <= number <= (0 if pads else 2) for number in padding_of(conv))
    return 1 + pads if joins else 0


def commutes(layers: Sequence[Any]) -> bool:
    """Whether the first two may change places, and cost less so: a convolution of kernel 1 sees each pixel by itself."""
    if len(layers) < 2 or not (halves(layers[1]) or doubles(layers[0])):
        return False
    conv, resampling = layers[:2] if halves(layers[1]) else (layers[1], layers[0])
    if why_must_be_called(resampling) or class_of(conv) is not nn.Conv2d or why_not_head(conv):
        return False
    weight = parameter(conv, "weight")
    if conv.padding_mode != "zeros" or padding_of(conv) != (0, 0) or conv.stride != (1, 1) or weight is None:
        return False
    # which is better off in one call with the convolution
    normalizes = doubles(layers[0]) and len(layers) > 2 and _may_follow_convolution(layers[2])
    return weight.shape[2:] == (1, 1) and not normalizes


def run_reordered(layers: Sequence[Any], input: torch.Tensor) -> torch.Tensor:
    """A step of kind `REORDERED`."""
    first, second = layers
    upsamples = doubles(first)
    conv = second if upsamples else first
    pays = reordering_pays(input, parameter(conv, "weight"), conv.groups, upsamples)
    if not pays or _backend.current_backend() == "reference":
        return second(first(input))
    _backend.count_native_call()  # else the pass would be remembered as one to leave as it is
    return first(second(to_keep(input) if upsamples else input))


def to_keep(input: torch.Tensor) -> torch.Tensor:
    """What a convolution before which there was an upsampling may keep for backward: the upsampling made a copy, while others may
    write into `input`."""
    return input.clone() if torch.is_grad_enabled() else input


def _joins_mean(conv: Any, after: Any) -> bool:
    """Whether a convolution and the layer after it, a mean over two by two pixels, are one convolution, of `ops.resampling_weight`."""
    return halves(after) and not why_must_be_called(after) and _may_resample(conv) and min(padding_of(conv)) >= 0


def _may_resample(conv: Any) -> bool:
    """Whether it may be one convolution of kernel 4 and stride 2 with a resampling by two."""
    if class_of(conv) is not nn.Conv2d or why_not_head(conv) or conv.groups != 1:
        return False
    numbers = (*conv.stride, *conv.dilation, *padding_of(conv))
    if any(type(number) is not int for number in numbers) or numbers[:4] != (1, 1, 1, 1):
        return False
    weight = parameter(conv, "weight")
    return weight is not None and weight.shape[2:] == (3, 3)


def upsamples(layers: Sequence[Any]) -> bool:
    """Whether a step with a convolution starts with an upsampling."""
    return convolution_of(layers) is not layers[0]


def pools(layers: Sequence[Any]) -> bool:
    """Whether a mean follows the convolution of a step."""
    return len(layers) > 1 and halves(layers[1])


def resamples(layers: Sequence[Any]) -> bool:
    """Whether a step's convolution is made of its layers' and of a resampling by two."""
    return upsamples(layers) or pools(layers)


def convolution_of(layers: Sequence[Any]) -> Any:
    """That of a step which has one."""
    return next(layer for layer in layers if isinstance(layer, tuple(CONVOLUTIONS)))


def _repeats_edge(layers: Sequence[Any]) -> bool:
    """Of a step that starts with an upsampling: whether its convolution sees the outermost pixels repeated, instead of zeros."""
    return pads_edge(layers[1]) or convolution_of(layers).padding_mode != "zeros"


def is_instance_norm(step: Step) -> bool:
    return class_of(step.layers[0]) is nn.InstanceNorm2d and step.kind is not None


def _why_not_alone(conv: Any) -> str:
    """Why a convolution that fuses is left to PyTorch where it is all that a call would hold, whatever its input."""
    if conv.groups != 1:
        return f"groups={conv.groups}; the kernels take 1"
    return "kernel (1, 1), for which PyTorch's is as good" if conv.kernel_size == (1, 1) else ""


def _may_follow_convolution(layer: Any) -> bool:
    """As a batch normalisation that one call can compute: what waits for other processes ends the call."""
    is_one = class_of(layer) is nn.BatchNorm2d or (type(layer) is FusedSyncBatchNorm and not joins_processes(layer))
    return is_one and not why_not_norm(layer)


def pad_before(layers: Sequence[Any]) -> Call | None:
    """What a step with a convolution that pads with something else than zeros does to its input first."""
    conv = convolution_of(layers)
    if upsamples(layers):
        return Call(F.pad, ((1, 1, 1, 1),), {"mode": "replicate"}) if _repeats_edge(layers) else None
    if conv.padding_mode == "zeros":
        return None
    return Call(F.pad, (conv._reversed_padding_repeated_twice,), {"mode": conv.padding_mode})


def geometry_of(layers: Sequence[Any]) -> Geometry:
    """Of the convolution that a step computes."""
    conv = convolution_of(layers)
    if upsamples(layers):
        h, w = padding_of(conv)
        # where the edge is repeated, less what the pixels that were put around would be alone
        padding = (3, 3) if _repeats_edge(layers) else (2 - h, 2 - w)
        return Geometry(True, (2, 2), padding, (0, 0), (1, 1))
    if pools(layers):
        return Geometry(False, (2, 2), padding_of(conv), (0, 0), (1, 1))
    transposed = isinstance(conv, nn.ConvTranspose2d)
    return Geometry(
        transposed, conv.stride, padding_of(conv), conv.output_padding if transposed else (0, 0), conv.dilation
    )


def weight_shape(layers: Sequence[Any]) -> tuple[int, ...]:
    """Of the convolution that a step computes."""
    shape: tuple[int, ...] = parameter(convolution_of(layers), "weight").shape  # type: ignore[union-attr]
    if upsamples(layers):
        return shape[1], shape[0], 4, 4
    return (*shape[:2], 4, 4) if pools(layers) else shape


_NO_NORM = {"running_mean": None, "running_var": None, "training": False, "momentum": 0.0, "eps": 1e-5}
_NO_ACTIVATION = ("none", 0.01)


def run_norm_step(layers: Sequence[Any], input: torch.Tensor) -> torch.Tensor:
    """A step of kind "batch_norm_act" or "sync_batch_norm_act"."""
    return run_norm(layers[0], input, *(activation_of(layers[-1]) or _NO_ACTIVATION))


def block(layers: Sequence[Any], input: torch.Tensor) -> Block:
    """The arguments of a step that has a convolution.

    Counts the batch in ``num_batches_tracked``, as the call of the normalisation would: to be called once a pass.  Of `input`, the
    number of dimensions is looked at.
    """
    conv = convolution_of(layers)
    activation, negative_slope = activation_of(layers[-1]) or _NO_ACTIVATION
    norm: dict[str, Any] = _NO_NORM
    bn_weight = bn_bias = None
    for layer in layers[1:]:
        if class_of(layer) in NORMS:
            # a convolution keeps the number of dimensions, so the chain's input already shows whether bn accepts its own
            norm = norm_arguments(layer, input)
            bn_weight, bn_bias = parameter(layer, "weight"), parameter(layer, "bias")
    weight: Any = parameter(conv, "weight")
    if resamples(layers):
        weight = resampling_weight(weight, pools=pools(layers))
    return Block(
        **geometry_of(layers)._asdict(),
        weight=weight,
        groups=conv.groups,
        bias=parameter(conv, "bias"),
        running_mean=norm["running_mean"],
        running_var=norm["running_var"],
        bn_weight=bn_weight,
        bn_bias=bn_bias,
        training=norm["training"],
        momentum=norm["momentum"],
        eps=norm["eps"],
        activation=activation,
        negative_slope=negative_slope,
    )

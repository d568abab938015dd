# SPDX-License-Identifier: MIT
"""Which layers run as one call when they feed each other: the plan, and the arguments of the call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from genimg_fast._backend import has_own_functions
from genimg_fast._block import Block
from genimg_fast.nn.norm import (
    FusedSyncBatchNorm,
    joins_processes,
    norm_arguments,
    parameter,
    run_norm,
)
from genimg_fast.ops._check import is_number
from genimg_fast.ops.resize_convolution_weight import resize_convolution_weight

# Exact classes (`class_of`): a subclass may do anything in its forward().
_CONVOLUTIONS: dict[type, str] = {nn.Conv2d: "conv2d_bn_act", nn.ConvTranspose2d: "conv_transpose2d_bn_act"}
BLOCKS = tuple(_CONVOLUTIONS.values())
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_ACTIVATIONS: dict[type, str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
_NORMS = (*_BATCH_NORMS, nn.InstanceNorm2d)
HEADS = (*_CONVOLUTIONS, *_NORMS)
"""The layers that a fused call can start with."""
LAYERS = (*HEADS, *_ACTIVATIONS)
"""All that a fused call can hold."""

# What is called in a forward() for an activation.  In place or not makes no difference where nobody else has the input.
_FUNCTIONS: dict[Callable[..., torch.Tensor], str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), "relu"),
    **dict.fromkeys((F.leaky_relu, F.leaky_relu_), "leaky_relu"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_), "tanh"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_), "sigmoid"),
}
ACTIVATION_METHODS = ("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_")
_UPSAMPLINGS = (nn.Upsample, nn.UpsamplingNearest2d)
_INTERPOLATE = F.interpolate  # unless somebody puts another one in its place
_PADDINGS = (nn.ReflectionPad2d, nn.ReplicationPad2d)


_CLASSES = {kind: kind for kind in LAYERS}


def class_of(layer: Any) -> type:
    """Its class in `torch.nn`, where it is of that or `fuse` made it run by itself wherever it is called."""
    kind = type(layer)
    if torch.compiler.is_compiling():  # whose dictionaries know identity alone
        return next((known for known in LAYERS if known == kind), kind)
    return _CLASSES.get(kind, kind)  # which fused classes equal


class Call(NamedTuple):
    """A layer that is not a module: ``function(input, *args, **kwargs)``, or the method of the input of that name."""

    function: Callable[..., torch.Tensor] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return self.function if isinstance(self.function, str) else getattr(self.function, "__name__", "?")

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        function = self.function
        if isinstance(function, str):
            return getattr(input, function)(*self.args, **self.kwargs)
        return function(input, *self.args, **self.kwargs)


class Step(NamedTuple):
    """Layers that run together."""

    names: tuple[str, ...]
    kind: str | None
    """The function of `genimg_fast.functional` that runs them; None where the one layer is called as it is."""
    reason: str
    """Why the layer is called as it is; empty if fused."""
    layers: tuple[Any, ...]


def plan(layers: Sequence[tuple[str, Any]]) -> list[Step]:
    """The steps in which the named layers run, each on the output of the one before.

    It is drawn up anew in each pass, at a microsecond or so a layer: layers and their hooks may change at any time.
    """
    if _has_any_global_hook():
        return [Step((name,), None, "hooks are registered for all modules", (layer,)) for name, layer in layers]
    steps: list[Step] = []
    start = 0
    while start < len(layers):
        step = _next_step(layers, start)
        steps.append(step)
        start += len(step.layers)
    return steps


def _next_step(layers: Sequence[tuple[str, Any]], start: int) -> Step:
    first = start + before_convolution([layer for _, layer in layers[start : start + 3]])
    name, head = layers[first]
    if reason := why_not_head(head):
        return Step((name,), None, reason, (head,))
    end = first + 1
    kind = class_of(head)
    if kind in _CONVOLUTIONS and end < len(layers):
        follower = layers[end][1]
        if _may_follow_convolution(follower) and not must_be_called(follower):
            end += 1
    if end < len(layers) and activation_of(layers[end][1]) and not must_be_called(layers[end][1]):
        end += 1
    names, together = zip(*layers[start:end], strict=True)
    if first > start:
        return Step(names, "conv_transpose2d_bn_act", "", together)
    if kind in _CONVOLUTIONS:
        if len(together) == 1 and (reason := _why_not_alone(head)):
            return Step(names, None, f"{reason}, and nothing follows that fuses", together)
        return Step(names, _CONVOLUTIONS[kind], "", together)
    return Step(names, "sync_batch_norm_act" if joins_processes(head) else "batch_norm_act", "", together)


def before_convolution(layers: Sequence[Any]) -> int:
    """How many layers stand before a convolution that is one transposed convolution with them, of `ops.resize_convolution_weight`: an
    upsampling and, perhaps, a padding; 0 where the first layers are not these."""
    if not doubles(layers[0]) or must_be_called(layers[0]):
        return 0
    pads = len(layers) > 1 and pads_edge(layers[1]) and not must_be_called(layers[1])
    conv: Any = layers[1 + pads] if len(layers) > 1 + pads else None
    if class_of(conv) is not nn.Conv2d or why_not_head(conv) or conv.groups != 1:
        return 0
    numbers = (*conv.stride, *conv.dilation, *padding_of(conv))
    if any(type(number) is not int for number in numbers) or numbers[:4] != (1, 1, 1, 1):
        return 0
    if conv.padding_mode != "zeros":
        by_one = list(conv._reversed_padding_repeated_twice) == [1] * 4
        joins = not pads and by_one and conv.padding_mode in ("reflect", "replicate")
    else:
        joins = all(0 <= number <= (0 if pads else 2) for number in numbers[4:])
    weight = parameter(conv, "weight")
    return 1 + pads if joins and weight is not None and weight.shape[2:] == (3, 3) else 0


def doubles(layer: Any) -> bool:
    """Whether it makes an image twice as high and wide by repeating pixels."""
    if type(layer) in _UPSAMPLINGS:
        if layer.align_corners is not None:  # which PyTorch refuses
            return False
        size, factor, mode = layer.size, layer.scale_factor, layer.mode
    elif type(layer) is Call and layer.function is _INTERPOLATE:
        given = dict(zip(("size", "scale_factor", "mode"), layer.args, strict=False)) | layer.kwargs
        # what is given besides says how other modes interpolate, or when to round a size that is a whole number
        if len(layer.args) > 3 or not given.keys() <= {"size", "scale_factor", "mode", "recompute_scale_factor"}:
            return False
        size, factor, mode = given.get("size"), given.get("scale_factor"), given.get("mode", "nearest")
    else:
        return False
    factors = factor if isinstance(factor, (tuple, list)) and len(factor) == 2 else (factor, factor)
    by_two = all(is_number(each) and each == 2 for each in factors)
    return size is None and by_two and mode in ("nearest", "nearest-exact")


def pads_edge(layer: Any) -> bool:
    """Whether it repeats the outermost pixels once, of an image that was doubled: there to reflect is the same."""
    return type(layer) in _PADDINGS and layer.padding == (1, 1, 1, 1)


def convolution_of(layers: Sequence[Any]) -> Any:
    """That of a step which has one."""
    return next(layer for layer in layers if isinstance(layer, tuple(_CONVOLUTIONS)))


def _repeats_edge(layers: Sequence[Any]) -> bool:
    """Of a step that starts with an upsampling: whether its convolution sees the outermost pixels repeated, instead of zeros."""
    return pads_edge(layers[1]) or convolution_of(layers).padding_mode != "zeros"


def is_batch_norm(layer: Any) -> bool:
    return class_of(layer) in _BATCH_NORMS


def takes_batch_statistics(layer: Any) -> bool:
    """Whether it is a batch normalisation in training mode, or one that never has running statistics."""
    return is_batch_norm(layer) and (layer.training or layer.running_mean is None)


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


def why_not_head(layer: Any) -> str:
    """Why no fused call can start at this layer; empty if one can."""
    if type(layer) is nn.SyncBatchNorm:
        return must_be_called(layer) or "it became a SyncBatchNorm after fuse(): call fuse() again"
    kind = class_of(layer)
    if kind in _CONVOLUTIONS:
        return why_not_convolution(layer) or must_be_called(layer)
    if kind in _NORMS:
        return must_be_called(layer) or why_not_norm(layer)
    if activation_of(layer):
        return must_be_called(layer) or "no convolution or normalisation that fuses stands before it"
    if doubles(layer):
        return must_be_called(layer) or "no convolution of kernel 3 that fuses with it follows"
    if isinstance(layer, nn.Module) and parametrize.is_parametrized(layer):
        return f"{', '.join(layer.parametrizations)} is parametrized"  # type: ignore[arg-type, union-attr]
    if kind is nn.LeakyReLU:
        return f"its negative_slope is {layer.negative_slope!r}; only a number is fused"
    if base := next((base for base in LAYERS if isinstance(layer, base)), None):
        if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
            return "it has no parameters yet: run the model once, then fuse() it again"
        return f"{kind.__name__} is a subclass of {base.__name__}, which may do more than it"
    return f"{kind.__name__} is not a layer that fuses"


def why_not_convolution(conv: Any) -> str:
    """Why a convolution with these settings does not fuse; empty if it does."""
    for name in ("stride", "dilation", "padding", "output_padding"):
        value = getattr(conv, name)
        # F.conv2d takes one number for both, too, so any code may have assigned one
        if not (type(value) is tuple and len(value) == 2) and not isinstance(value, str):
            return f"{name} is {value!r}; only a tuple of two numbers is fused"
    if min(conv.stride) < 1:
        return f"stride is {conv.stride}, which PyTorch refuses"
    if conv.padding == "same" and conv.padding_mode == "zeros":
        if conv.stride != (1, 1):
            return "padding is 'same', which PyTorch refuses with a stride"
        if any(n % 2 for n in _same_padding(conv)):
            return "padding is 'same', and not alike on both sides"
    return ""


def _same_padding(conv: Any) -> tuple[int, int]:
    """The rows and columns that `padding="same"` adds, on both sides together."""
    h, w = parameter(conv, "weight").shape[2:]  # type: ignore[union-attr]
    return conv.dilation[0] * (h - 1), conv.dilation[1] * (w - 1)


def padding_of(conv: Any) -> tuple[int, int]:
    """The zeros that a convolution pads with: on each side."""
    if conv.padding_mode != "zeros" or conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        h, w = _same_padding(conv)
        return h // 2, w // 2
    return conv.padding


def pad_before(layers: Sequence[Any]) -> Call | None:
    """What a step with a convolution that pads with something else than zeros does to its input first."""
    conv = convolution_of(layers)
    if conv is not layers[0]:
        return Call(F.pad, ((1, 1, 1, 1),), {"mode": "replicate"}) if _repeats_edge(layers) else None
    if conv.padding_mode == "zeros":
        return None
    return Call(F.pad, (conv._reversed_padding_repeated_twice,), {"mode": conv.padding_mode})


def why_not_norm(norm: Any) -> str:
    """Why a normalisation with these settings does not fuse; empty if it does."""
    if isinstance(norm, nn.InstanceNorm2d) and norm.track_running_stats:
        return "it tracks running statistics, which only a batch normalisation fuses with"
    if not (is_number(norm.eps) and (norm.momentum is None or is_number(norm.momentum))):
        return "its eps or momentum is no number"  # as a tensor, which PyTorch takes, or a string, which it refuses
    return ""


def must_be_called(layer: Any) -> str:
    """Why the layer's own call must run, though its class fuses; empty if it need not."""
    if type(layer) is Call:
        return ""
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "it has hooks"
    if "forward" in layer.__dict__:
        return "its forward() was replaced"
    if layer._compiled_call_impl is not None:
        return "it is compiled on its own"
    return why_not_fused(layer)


def why_not_fused(layer: Any) -> str:
    """Why the layer's own forward() must run, though its class fuses; empty if it need not."""
    own = layer.__dict__
    if "_conv_forward" in own or "_output_padding" in own or "_check_input_dim" in own or "_apply_instance_norm" in own:
        return "a method that its forward() calls was replaced"
    for name, tensor in layer._parameters.items():
        if tensor is not None and has_own_functions(type(tensor)):
            return f"{name} is a {type(tensor).__name__}, which may change what is called on it"
    return ""


def activation_of(layer: Any) -> tuple[str, float] | None:
    """The name and negative_slope of an activation that fuses; None for other layers."""
    name = _ACTIVATIONS.get(type(layer))
    if name is not None:
        slope = layer.negative_slope if name == "leaky_relu" else 0.01
        return (name, slope) if is_number(slope) else None
    if type(layer) is not Call:
        return None
    function, args, kwargs = layer
    if isinstance(function, str):
        return (function.rstrip("_"), 0.01) if not args and not kwargs else None
    name = _FUNCTIONS.get(function) if isinstance(function, Hashable) else None
    known = {"inplace"}
    slope = 0.01
    if name == "leaky_relu":
        slope = args[0] if args else kwargs.get("negative_slope", 0.01)
        args, known = args[1:], {"inplace", "negative_slope"}
    if name is None or len(args) > 1 or not known.issuperset(kwargs) or not is_number(slope):
        return None
    return name, slope


def resize_padding(layers: Sequence[Any]) -> tuple[int, int]:
    """Of the transposed convolution that layers are which start with an upsampling."""
    if _repeats_edge(layers):
        return 3, 3  # which leaves out what the pixels that were put around would be alone
    h, w = padding_of(convolution_of(layers))
    return 2 - h, 2 - w


_NO_NORM = {"running_mean": None, "running_var": None, "training": False, "momentum": 0.0, "eps": 1e-5}
_NO_ACTIVATION = ("none", 0.01)


def run_norm_step(layers: Sequence[Any], input: torch.Tensor) -> torch.Tensor:
    """A step of kind "batch_norm_act" or "sync_batch_norm_act"."""
    return run_norm(layers[0], input, *(activation_of(layers[-1]) or _NO_ACTIVATION))


def block(layers: Sequence[Any], input: torch.Tensor) -> Block:
    """A step that has a convolution; `input` has the number of dimensions of the step's own."""
    conv = convolution_of(layers)
    activation, negative_slope = activation_of(layers[-1]) or _NO_ACTIVATION
    norm: dict[str, Any] = _NO_NORM
    bn_weight = bn_bias = None
    for layer in layers[1:]:
        if class_of(layer) in _NORMS:
            # a convolution keeps the number of dimensions, so the chain's input already shows whether bn accepts its own
            norm = norm_arguments(layer, input)
            bn_weight, bn_bias = parameter(layer, "weight"), parameter(layer, "bias")
    of_conv = _convolution(conv) if conv is layers[0] else _resize_convolution(layers)
    return Block(
        **of_conv,
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


def _convolution(conv: Any) -> dict[str, Any]:
    transposed = isinstance(conv, nn.ConvTranspose2d)
    return {
        "transposed": transposed,
        "weight": parameter(conv, "weight"),
        "stride": conv.stride,
        "padding": padding_of(conv),
        "output_padding": conv.output_padding if transposed else (0, 0),
        "dilation": conv.dilation,
        "groups": conv.groups,
    }


def _resize_convolution(layers: Sequence[Any]) -> dict[str, Any]:
    weight = parameter(convolution_of(layers), "weight")
    return {
        "transposed": True,
        "weight": resize_convolution_weight(weight),  # type: ignore[arg-type]
        "stride": (2, 2),
        "padding": resize_padding(layers),
        "output_padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
    }

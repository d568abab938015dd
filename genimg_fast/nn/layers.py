# SPDX-License-Identifier: MIT
"""What a layer is to a fused call: its kind, and the reasons why it cannot be part of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from genimg_fast._backend import has_own_functions
from genimg_fast.nn.norm import parameter
from genimg_fast.ops._check import is_number

# Exact classes (`class_of`): a subclass may do anything in its forward().
CONVOLUTIONS: dict[type, str] = {nn.Conv2d: "conv2d_bn_act", nn.ConvTranspose2d: "conv_transpose2d_bn_act"}
BLOCKS = tuple(CONVOLUTIONS.values())
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_ACTIVATIONS: dict[type, str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
NORMS = (*_BATCH_NORMS, nn.InstanceNorm2d)
HEADS = (*CONVOLUTIONS, *NORMS)
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
_INTERPOLATE, _AVG_POOL = F.interpolate, F.avg_pool2d  # unless somebody puts others in their place
_OF_MEANS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_PADDINGS = (nn.ReflectionPad2d, nn.ReplicationPad2d)
# which may do nothing; other dropouts refuse some images
_PASSING = frozenset((nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout))


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

    def by_name(self, *names: str) -> dict[str, Any] | None:
        """What is given, where arguments given by position have these names; None where one is given twice, or too many are."""
        given = dict(zip(names, self.args, strict=False)) | self.kwargs
        return given if len(given) == len(self.args) + len(self.kwargs) else None

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        function = self.function
        if isinstance(function, str):
            return getattr(input, function)(*self.args, **self.kwargs)
        return function(input, *self.args, **self.kwargs)


def doubles(layer: Any) -> bool:
    """Whether it makes an image twice as high and wide by repeating pixels."""
    if type(layer) in _UPSAMPLINGS:
        if layer.align_corners is not None:  # which PyTorch refuses
            return False
        size, factor, mode = layer.size, layer.scale_factor, layer.mode
    elif type(layer) is Call and layer.function is _INTERPOLATE:
        given = layer.by_name("size", "scale_factor", "mode")
        # what is given besides says how other modes interpolate, or when to round a size that is a whole number
        if given is None or not given.keys() <= {"size", "scale_factor", "mode", "recompute_scale_factor"}:
            return False
        size, factor, mode = given.get("size"), given.get("scale_factor"), given.get("mode", "nearest")
    else:
        return False
    factors = factor if isinstance(factor, (tuple, list)) and len(factor) == 2 else (factor, factor)
    by_two = all(is_number(each) and each == 2 for each in factors)
    return size is None and by_two and mode in ("nearest", "nearest-exact")


def halves(layer: Any) -> bool:
    """Whether it makes an image half as high and wide by taking the mean of two by two pixels."""
    given: Any = None
    if type(layer) is nn.AvgPool2d:
        given = {name: getattr(layer, name) for name in _OF_MEANS}
    elif type(layer) is Call and layer.function is _AVG_POOL:
        given = layer.by_name(*_OF_MEANS)
    if given is None or not given.keys() <= set(_OF_MEANS):
        return False
    size, stride = given.get("kernel_size"), given.get("stride")
    return (
        _is_of_both(size, 2)
        and (stride is None or _is_of_both(stride, 2))
        and _is_of_both(given.get("padding", 0), 0)
        and given.get("ceil_mode", False) is False
        and type(given.get("count_include_pad", True)) is bool
        and given.get("divisor_override") is None
    )


def _is_of_both(value: Any, number: int) -> bool:
    """Whether it is this number for rows and for columns."""
    both = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
    return all(type(each) is int and each == number for each in both)


def pads_edge(layer: Any) -> bool:
    """Whether it repeats the outermost pixels once, of an image that was doubled: there to reflect is the same."""
    return type(layer) in _PADDINGS and layer.padding == (1, 1, 1, 1)


def may_pass_through(layer: Any) -> bool:
    """Whether there are times when it gives what it is given."""
    return type(layer) in _PASSING


def passes_through(layer: Any) -> bool:
    """Whether it gives what it is given now: a dropout does in inference, or where it drops nothing."""
    if not may_pass_through(layer) or why_must_be_called(layer):
        return False
    if type(layer) is nn.Identity:
        return True
    return is_number(layer.p) and (layer.p == 0 or (not layer.training and 0 <= layer.p <= 1))


def is_batch_norm(layer: Any) -> bool:
    return class_of(layer) in _BATCH_NORMS


def takes_batch_statistics(layer: Any) -> bool:
    """Whether it is a batch normalisation in training mode, or one that never has running statistics."""
    return is_batch_norm(layer) and (layer.training or layer.running_mean is None)


def why_not_head(layer: Any) -> str:
    """Why no fused call can start at this layer; empty if one can."""
    if type(layer) is nn.SyncBatchNorm:
        return why_must_be_called(layer) or "it became a SyncBatchNorm after fuse(): call fuse() again"
    kind = class_of(layer)
    if kind in CONVOLUTIONS:
        return why_not_convolution(layer) or why_must_be_called(layer)
    if kind in NORMS:
        return why_must_be_called(layer) or why_not_norm(layer)
    if activation_of(layer):
        return why_must_be_called(layer) or "no convolution or normalisation that fuses stands before it"
    if doubles(layer):
        return why_must_be_called(layer) or "no convolution of kernel 3 that fuses with it follows"
    if halves(layer):
        return why_must_be_called(layer) or "no convolution of kernel 3 that fuses with it stands before it"
    if isinstance(layer, nn.Module) and parametrize.is_parametrized(layer):
        return f"{', '.join(layer.parametrizations)} is parametrized"  # type: ignore[arg-type, union-attr]
    if kind in _UPSAMPLINGS:
        return f"only an upsampling by two that repeats pixels fuses; this is {layer.extra_repr()}"
    if kind is nn.AvgPool2d:
        return f"only the mean over two by two pixels fuses; this is {layer.extra_repr()}"
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


def why_not_norm(norm: Any) -> str:
    """Why a normalisation with these settings does not fuse; empty if it does."""
    if isinstance(norm, nn.InstanceNorm2d) and norm.track_running_stats:
        return "it tracks running statistics, which only a batch normalisation fuses with"
    if not (is_number(norm.eps) and (norm.momentum is None or is_number(norm.momentum))):
        return "its eps or momentum is no number"  # as a tensor, which PyTorch takes, or a string, which it refuses
    return ""


def why_must_be_called(layer: Any) -> str:
    """Why the layer's own call must run, though its class fuses; empty if it need not."""
    if type(layer) is Call:
        return ""
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return f"it has hooks: {', '.join(dict.fromkeys(_hooks_of(layer)))}"
    if "forward" in layer.__dict__:
        return "its forward() was replaced"
    if layer._compiled_call_impl is not None:
        return "it is compiled on its own"
    return why_not_fused(layer)


def _hooks_of(layer: nn.Module) -> Iterator[str]:
    """Their names: of SpectralNorm, say, that of its class, whose instance is the hook."""
    for hooks in (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks):
        for hook in hooks.values():
            yield getattr(hook, "__name__", type(hook).__name__)


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

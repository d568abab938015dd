# SPDX-License-Identifier: MIT
"""A `torch.nn.Sequential` that runs its convolutions, batch normalisations and activations as fused calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from genimg_fast import functional
from genimg_fast.nn.chain import run_blocks
from genimg_fast.nn.replay import remember, replay
from genimg_fast.reference.block_chain import Block

# Exact classes: a subclass may do anything in its forward().
_CONVOLUTIONS: dict[type, str] = {nn.Conv2d: "conv2d_bn_act", nn.ConvTranspose2d: "conv_transpose2d_bn_act"}
_BLOCKS = tuple(_CONVOLUTIONS.values())
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_ACTIVATIONS: dict[type, str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
FUSABLE_HEADS = (*_CONVOLUTIONS, *_BATCH_NORMS)
"""The layers that a fused call can start with."""


class Step(NamedTuple):
    """Consecutive children of a `FusedSequential` that run together."""

    names: tuple[str, ...]
    kind: str | None
    """The function of `genimg_fast.functional` that runs them; None where the one child is called as it is."""
    reason: str
    """Why the child is called as it is; empty if fused."""


class FusedSequential(nn.Sequential):
    """`torch.nn.Sequential` whose layers run fused, each group as one call of `genimg_fast.functional`.

    Fused are ``Conv2d | ConvTranspose2d`` (+ ``BatchNorm2d``) (+ activation) and ``BatchNorm1d | BatchNorm2d``
    (+ activation), with ``ReLU``, ``LeakyReLU``, ``Tanh`` or ``Sigmoid`` as the activation.  All other children are called
    as in ``nn.Sequential``; so is a child that must see its own call: one with hooks, with a parametrization, of a
    subclass.  `plan` says which, and why.

    Children, parameters, buffers and ``state_dict`` are those of ``nn.Sequential(*args)``, and the output and gradients equal
    its own, running statistics and ``num_batches_tracked`` included.  The mode of each batch normalisation is its own
    ``training`` flag, so frozen ones stay frozen.

    Shape: that of ``nn.Sequential(*args)``.

    Raises:
        TypeError, ValueError: input of the wrong dtype or shape, as the functions and ``torch.nn`` layers do.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output = replay(self, input)
        if output is not None:
            return output
        output = input
        blocks: list[Block] = []  # convolution blocks that stand one after the other
        for kind, children in self._groups():
            if kind in _BLOCKS:
                blocks.append(_block(kind, children, output))
                continue
            output = run_blocks(output, blocks)
            blocks = []
            output = _batch_norm_act(children, output) if kind else children[0](output)
        if output is input and blocks:
            remember(self, input, blocks)
        return run_blocks(output, blocks)

    def _groups(self) -> Iterator[tuple[str | None, list[Any]]]:
        """The steps with their children; those of a FusedSequential inside as if they were this one's own."""
        for names, kind, _ in self.plan():
            children = [self._modules[name] for name in names]
            if kind is None and _runs_inline(children[0]):
                yield from children[0]._groups()  # type: ignore[operator, union-attr]
            else:
                yield kind, children

    def plan(self) -> list[Step]:
        """The steps of a forward pass, in order.

        It is drawn up anew in each pass, at a microsecond or so a child: children and their hooks may change at any time.
        """
        if _has_any_global_hook():
            return [Step((name,), None, "hooks are registered for all modules") for name in self._modules]
        children = list(self._modules.items())
        steps: list[Step] = []
        start = 0
        while start < len(children):
            step = _next_step(children, start)
            steps.append(step)
            start += len(step.names)
        return steps

    def __getitem__(self, idx):
        if isinstance(idx, slice):  # nn.Sequential calls self.__class__(children): not the constructor of each subclass
            return FusedSequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)


def _next_step(children: list[tuple[str, nn.Module]], start: int) -> Step:
    name, head = children[start]
    if reason := _why_not_first(head):
        return Step((name,), None, reason)
    names = [name]
    following = children[start + 1 : start + 3]
    if type(head) in _CONVOLUTIONS and following:
        name, child = following[0]
        if type(child) is nn.BatchNorm2d and not _must_be_called(child):
            names.append(name)
            del following[0]
    if following:
        name, child = following[0]
        if type(child) in _ACTIVATIONS and not _must_be_called(child):
            names.append(name)
    return Step(tuple(names), _CONVOLUTIONS.get(type(head), "batch_norm_act"), "")


def _why_not_first(module: Any) -> str:
    """Why no fused call can start at this child; empty if one can."""
    kind = type(module)
    if kind in _CONVOLUTIONS:
        if module.padding_mode != "zeros":
            return f"padding_mode is {module.padding_mode!r}; only 'zeros' is fused"
        if isinstance(module.padding, str):
            return f"padding is {module.padding!r}; only padding in numbers is fused"
    elif kind in _ACTIVATIONS:
        return _must_be_called(module) or "no convolution or batch normalisation that fuses stands before it"
    elif isinstance(module, FusedSequential):
        return "it fuses its own layers"
    elif kind not in _BATCH_NORMS:
        return f"{kind.__name__} is not a layer that fuses"
    return _must_be_called(module)


def _must_be_called(module: nn.Module) -> str:
    """Why the module's own call must run, though its class fuses; empty if it need not."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks"
    if "forward" in module.__dict__:
        return "its forward() was replaced"
    if module._compiled_call_impl is not None:
        return "it is compiled on its own"
    return ""


def _activation(children: list[Any]) -> dict[str, Any]:
    last = children[-1]
    name = _ACTIVATIONS.get(type(last), "none")
    return {"activation": name, "negative_slope": last.negative_slope} if name == "leaky_relu" else {"activation": name}


def _runs_inline(module: nn.Module | None) -> bool:
    """A block among blocks: the image need not be put back into its order between them."""
    return (
        isinstance(module, FusedSequential)
        and type(module).forward is FusedSequential.forward
        and not _must_be_called(module)
        and not _has_any_global_hook()
    )


_NO_NORM = {"running_mean": None, "running_var": None, "training": False, "momentum": 0.0, "eps": 1e-5}


def _norm(bn: Any, input: torch.Tensor) -> dict[str, Any]:
    """What `bn(input)` would pass to `F.batch_norm`, counting the batch as it does."""
    bn._check_input_dim(input)
    momentum, training = bn.momentum, bn.training
    running_mean, running_var = bn._buffers["running_mean"], bn._buffers["running_var"]
    tracks = training and bn.track_running_stats
    if tracks and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if momentum is None:  # the cumulative average
            momentum = 1.0 / float(bn.num_batches_tracked)
    uses_running = tracks or not training
    return {
        "running_mean": running_mean if uses_running else None,
        "running_var": running_var if uses_running else None,
        "training": training or (running_mean is None and running_var is None),
        "momentum": 0.0 if momentum is None else momentum,
        "eps": bn.eps,
    }


def _batch_norm_act(children: list[Any], input: torch.Tensor) -> torch.Tensor:
    bn = children[0]
    return functional.batch_norm_act(input, weight=bn.weight, bias=bn.bias, **_norm(bn, input), **_activation(children))


def _block(kind: str, children: list[Any], input: torch.Tensor) -> Block:
    conv, last = children[0], children[-1]
    activation = _ACTIVATIONS.get(type(last), "none")
    norm: dict[str, Any] = _NO_NORM
    bn_weight = bn_bias = None
    if len(children) > 1 and type(children[1]) is nn.BatchNorm2d:
        # a convolution keeps the number of dimensions, so the chain's input already shows whether bn accepts its own
        bn = children[1]
        norm, bn_weight, bn_bias = _norm(bn, input), bn._parameters["weight"], bn._parameters["bias"]
    transposed = kind == "conv_transpose2d_bn_act"
    return Block(
        transposed=transposed,
        weight=conv._parameters["weight"],  # as conv.weight, which takes three times as long
        bias=conv._parameters["bias"],
        running_mean=norm["running_mean"],
        running_var=norm["running_var"],
        bn_weight=bn_weight,
        bn_bias=bn_bias,
        training=norm["training"],
        momentum=norm["momentum"],
        eps=norm["eps"],
        stride=conv.stride,
        padding=conv.padding,
        output_padding=conv.output_padding if transposed else (0, 0),
        dilation=conv.dilation,
        groups=conv.groups,
        activation=activation,
        negative_slope=last.negative_slope if activation == "leaky_relu" else 0.01,
    )

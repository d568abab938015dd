# SPDX-License-Identifier: MIT
"""Layers of a `FusedSequential` that must be called as they are."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from genimg_fast.nn import FusedSequential
from tests import _cases
from tests.nn._sequential import IMAGES, assert_same_training, plain_twin


class CountingConv(nn.Conv2d):
    def forward(self, input):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(input)


def with_forward_hook(module):
    module.register_forward_hook(lambda module, args, output: output * 2)
    return module


def with_pre_hook(module):
    module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return module


def with_backward_hook(module):
    module.register_full_backward_hook(lambda module, grad_input, grad_output: (grad_input[0] * 2,))
    return module


def with_backward_pre_hook(module):
    module.register_full_backward_pre_hook(lambda module, grad_output: (grad_output[0] * 2,))
    return module


def with_own_forward(module):
    forward = type(module).forward
    module.forward = lambda input: 2 * forward(module, input)
    return module


def conv(*args, **kwargs):
    return nn.Conv2d(4, 4, 3, *args, **kwargs)


def assigned(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


UNFUSED_CASES = {
    "forward hook": (lambda: [with_forward_hook(conv()), nn.ReLU()], 0, "it has hooks"),
    "forward hook on bn": (lambda: [conv(), with_forward_hook(nn.BatchNorm2d(4)), nn.ReLU()], 1, "it has hooks"),
    "forward hook on activation": (lambda: [conv(), with_forward_hook(nn.ReLU())], 1, "it has hooks"),
    "pre hook": (lambda: [conv(), with_pre_hook(nn.BatchNorm2d(4))], 1, "it has hooks"),
    "backward hook": (lambda: [with_backward_hook(conv()), nn.ReLU()], 0, "it has hooks"),
    "backward pre hook": (lambda: [with_backward_pre_hook(conv()), nn.ReLU()], 0, "it has hooks"),
    "own forward": (lambda: [conv(), with_own_forward(nn.ReLU())], 1, r"its forward\(\) was replaced"),
    "subclass": (
        lambda: [CountingConv(4, 4, 3), nn.ReLU()],
        0,
        "CountingConv is a subclass of Conv2d, which may do more than it",
    ),
    "spectral norm": (lambda: [parametrizations.spectral_norm(conv()), nn.ReLU()], 0, "weight is parametrized"),
    "weight norm": (lambda: [parametrizations.weight_norm(conv()), nn.ReLU()], 0, "weight is parametrized"),
    "padding of an even kernel in words": (
        lambda: [nn.Conv2d(4, 4, 2, padding="same"), nn.ReLU()],
        0,
        "padding is 'same'",
    ),
    "stride in one number": (lambda: [assigned(conv(), stride=2), nn.ReLU()], 0, "stride is 2; only a tuple"),
    "dilation in a list": (lambda: [assigned(conv(), dilation=[1, 1]), nn.ReLU()], 0, r"dilation is \[1, 1\]; only a"),
    "padding of one number": (lambda: [assigned(conv(), padding=(1,)), nn.ReLU()], 0, r"padding is \(1,\); only a"),
    "other activation": (lambda: [conv(), nn.GELU()], 1, "GELU is not a layer that fuses"),
    "other upsampling": (
        lambda: [nn.Upsample(scale_factor=2, mode="bilinear"), conv(), nn.ReLU()],
        0,
        "only an upsampling by two that repeats pixels fuses; this is scale_factor=2.0, mode='bilinear'",
    ),
    "other mean": (
        lambda: [conv(), nn.AvgPool2d(3), nn.ReLU()],
        1,
        "only the mean over two by two pixels fuses; this is kernel_size=3",
    ),
    "other norm": (lambda: [conv(), nn.GroupNorm(2, 4), nn.ReLU()], 1, "GroupNorm is not a layer that fuses"),
    "activation after an unfused layer": (lambda: [nn.GroupNorm(2, 4), nn.ReLU()], 1, "no convolution or norm"),
}


@pytest.mark.parametrize("case", UNFUSED_CASES)
def test_layer_that_must_be_called_is_called(case):
    layers, index, reason = UNFUSED_CASES[case]
    torch.manual_seed(0)
    model = FusedSequential(*layers()).double()
    torch.manual_seed(0)
    plain = nn.Sequential(*layers()).double()  # built again, since hooks that close over a module do not survive a copy
    step = next(step for step in model.plan() if str(index) in step.names)
    assert step.kind is None
    assert step.names == (str(index),)
    assert re.search(reason, step.reason)
    assert_same_training(model, plain, _cases.randn(IMAGES, torch.float64, 1))


def test_hooks_for_all_modules_see_every_layer():
    model = FusedSequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
    try:
        model(torch.randn(IMAGES))
        assert model.plan()[0].reason == "hooks are registered for all modules"
    finally:
        handle.remove()
    assert seen == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, FusedSequential]
    assert len(model.plan()) == 1


class Doubled(FusedSequential):
    def forward(self, input):
        return 2 * super().forward(input)


def test_nested_blocks_that_must_be_called_are_called():
    hooked = with_forward_hook(FusedSequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
    model = FusedSequential(Doubled(nn.Conv2d(4, 4, 1), nn.ReLU()), hooked, FusedSequential(nn.Tanh()))
    x = _cases.randn(IMAGES)
    torch.testing.assert_close(model(x), plain_twin(model)(x))
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
    try:
        model(x)
    finally:
        handle.remove()
    nested = [nn.Conv2d, nn.ReLU, Doubled, nn.Conv2d, nn.ReLU, FusedSequential, nn.Tanh, FusedSequential]
    assert seen == [*nested, FusedSequential]


def test_hook_counts_from_when_it_is_registered_until_it_is_removed():
    model = FusedSequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    assert len(model.plan()) == 1
    seen = []
    handle = model[1].register_forward_hook(lambda *_: seen.append("hook"))
    model(torch.randn(IMAGES))
    assert seen == ["hook"]
    handle.remove()
    model(torch.randn(IMAGES))
    assert seen == ["hook"]
    assert len(model.plan()) == 1


def test_layer_compiled_on_its_own_is_called():
    model = FusedSequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    model[0].compile(backend="eager")
    assert model.plan()[0].reason == "it is compiled on its own"


def test_lazy_layers_fuse_once_their_shapes_are_known():
    model = FusedSequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    assert model.plan()[0].reason == "it has no parameters yet: run the model once, then fuse() it again"
    x = _cases.randn(IMAGES)
    model(x)
    assert [step.kind for step in model.plan()] == ["conv2d_bn_act"]
    plain = plain_twin(model)
    torch.testing.assert_close(model(x), plain(x))

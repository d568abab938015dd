# SPDX-License-Identifier: MIT
"""What modes of PyTorch change, and what was replaced in a layer, counts in a fused model too."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import genimg_fast
from genimg_fast import _backend
from genimg_fast.nn import norm
from tests import _cases

pytestmark = pytest.mark.usefixtures("backend")


def upsampler() -> nn.Sequential:
    """Layers that the kernels run faster than PyTorch, however small."""
    torch.manual_seed(0)
    return nn.Sequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()


def lone() -> nn.Module:
    torch.manual_seed(0)
    return nn.ConvTranspose2d(3, 4, 4, 2, 1).eval()


SMALL = pytest.mark.parametrize("make", [upsampler, lone])
SMALL_SHAPE = (2, 3, 5, 5)


class FunctionsNegated(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        return -output if getattr(function, "__name__", "") == "conv_transpose2d" else output


class OperatorsNegated(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        return -output if function is torch.ops.aten.convolution.default else output


@SMALL
@pytest.mark.parametrize("mode", [FunctionsNegated, OperatorsNegated])
@torch.no_grad()
def test_modes_that_change_convolutions_count(make, mode):
    fused, plain, x = make(), make(), _cases.randn(SMALL_SHAPE)
    genimg_fast.fuse(fused)
    expected = fused(x)  # and repeated from now on
    with mode(), torch.device("cpu"):
        torch.testing.assert_close(fused(x), plain(x))
        assert not torch.allclose(fused(x), expected)
    torch.testing.assert_close(fused(x), expected)


@SMALL
@torch.no_grad()
def test_a_default_device_changes_nothing(make):
    model, x = make(), _cases.randn(SMALL_SHAPE)
    genimg_fast.fuse(model)
    with torch.device("cpu"), torch.device("cpu"):
        for _ in range(2):
            before = _backend.native_calls()
            model(x)
            assert _backend.native_calls() == before + 1


@SMALL
@pytest.mark.parametrize("calls_before", [0, 2])
@torch.no_grad()
def test_make_fx_records_standard_operators(make, calls_before):
    fused, plain, x = make(), make(), _cases.randn(SMALL_SHAPE)
    genimg_fast.fuse(fused)
    for _ in range(calls_before):
        fused(x)
    ours, theirs = (make_fx(model)(x) for model in (fused, plain))
    assert [str(node.target) for node in ours.graph.nodes] == [str(node.target) for node in theirs.graph.nodes]


@SMALL
@torch.no_grad()
def test_operations_are_counted(make):
    counts = []
    for model in (plain := make(), genimg_fast.fuse(copy.deepcopy(plain)).model):
        with FlopCounterMode(display=False) as counter:
            model(_cases.randn(SMALL_SHAPE))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_a_batch_norm_over_several_processes_is_the_same_one_inside_a_mode(monkeypatch):
    """One of them alone may be inside it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    genimg_fast.fuse(model)
    seen = []
    monkeypatch.setattr(norm, "joins_processes", lambda bn: True)
    monkeypatch.setattr(norm, "run_norm", lambda bn, input, *_: seen.append(bn) or input)
    with OperatorsNegated():
        model(_cases.randn((2, 3, 4, 4)))
    assert seen == [model[1]]


def replaced_conv_forward(conv):
    def wrapped_around(self, input, weight, bias):  # as images without a seam are made
        return F.conv2d(F.pad(input, (1, 1, 1, 1), "circular"), weight, bias)

    conv._conv_forward = wrapped_around.__get__(conv)


def replaced_output_padding(conv):
    conv._output_padding = lambda *args, **kwargs: [1, 1]


def replaced_check(bn):
    def check(input):
        if input.shape == SMALL_SHAPE:  # not that of what the convolution before it makes
            raise ValueError("not this one")

    bn._check_input_dim = check


class Halved(nn.Parameter):
    """What functions of torch give is half of what they would."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            output = function(*args, **(kwargs or {}))
            return output / 2 if getattr(function, "__name__", "") in ("conv2d", "batch_norm") else output


def halved_weight(layer):
    layer.weight = Halved(layer.weight.detach())


OWN_WAYS = {
    "_conv_forward": (lambda: nn.Conv2d(3, 4, 3, padding=1), replaced_conv_forward),
    "_output_padding": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1), replaced_output_padding),
    "_check_input_dim": (lambda: nn.BatchNorm2d(3), replaced_check),
    "a convolution's weight": (lambda: nn.Conv2d(3, 4, 3, padding=1), halved_weight),
    "a batch normalisation's weight": (lambda: nn.BatchNorm2d(3), halved_weight),
}


@pytest.mark.parametrize("inside", [True, False], ids=["in a Sequential", "alone"])
@pytest.mark.parametrize("way", OWN_WAYS)
@torch.no_grad()
def test_own_ways_of_a_layer_count(way, inside):
    make, change = OWN_WAYS[way]
    torch.manual_seed(0)
    layer, x = make().eval(), _cases.randn(SMALL_SHAPE)
    plain = nn.Sequential(nn.ConvTranspose2d(3, 3, 2, 2), layer, nn.ReLU()).eval() if inside else layer
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    for _ in range(2):
        fused(x)
    for model in (fused, plain):
        change(model[1] if inside else model)
    for _ in range(2):
        results = [outcome_or_error(model, x) for model in (fused, plain)]
        torch.testing.assert_close(*results)


def outcome_or_error(model, x):
    try:
        return model(x)
    except ValueError as error:
        return [ord(letter) for letter in str(error)]


class Upsampler(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.upsample(x)

    def upsample(self, x):
        return F.relu(self.bn(self.conv(x)))


def lone_norm() -> nn.Module:
    return nn.BatchNorm2d(3).eval()


HOLDERS = pytest.mark.parametrize("make", [upsampler, lone, lone_norm, Upsampler, lambda: nn.InstanceNorm2d(3)])


@HOLDERS
@pytest.mark.parametrize("undo", [genimg_fast.unfuse, genimg_fast.fuse])
def test_who_wrapped_forward_may_call_it_after_unfuse(make, undo):
    model = make().eval()
    plain, x = copy.deepcopy(model), _cases.randn(SMALL_SHAPE)
    genimg_fast.fuse(model)
    wrapped = model.forward
    model.forward = lambda x: 2 * wrapped(x)
    for change in (lambda m: m, undo):
        change(model)
        with torch.no_grad():
            torch.testing.assert_close(model(x), 2 * plain(x))
        torch.testing.assert_close(model(x), 2 * plain(x))
    del model.forward
    torch.testing.assert_close(genimg_fast.unfuse(model)(x), plain(x))
    assert type(model) is type(plain)


def test_any_method_may_be_kept_by_anybody():
    plain, x = Upsampler().eval(), _cases.randn(SMALL_SHAPE)
    model = copy.deepcopy(plain)
    genimg_fast.fuse(model)
    kept = [model.upsample, functools.partial(model.forward)]
    genimg_fast.unfuse(model)
    for method in kept:
        torch.testing.assert_close(method(x), plain(x))
    assert vars(model).keys() == vars(plain).keys()
    layers = upsampler()
    genimg_fast.fuse(layers)
    get_item, layers.kept_plan = layers.__getitem__, layers.plan
    assert genimg_fast.unfuse(layers)[0] is get_item(0)
    assert [step.kind for step in layers.kept_plan()] == ["conv_transpose2d_bn_act"]


@HOLDERS
def test_methods_that_others_keep_in_the_module_become_plain(make):
    """As accelerate keeps the forward() that it wraps, and puts it back as an attribute."""
    model = make()
    genimg_fast.fuse(model)
    model._original_forward = model.forward
    model.forward = model._original_forward
    genimg_fast.unfuse(model)
    assert model.forward.__func__ is type(model).forward
    assert model._original_forward == model.forward
    assert model.forward.__self__ is model

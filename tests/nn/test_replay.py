# SPDX-License-Identifier: MIT
"""A pass in inference is repeated only while nothing that it depends on has changed."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from genimg_fast import unfuse, use_backend
from genimg_fast.nn import FusedSequential, replay
from genimg_fast.nn.sequential import run_in_turn
from tests import _cases

CHANGES = {
    "an attribute": lambda m: setattr(m[1], "eps", 0.5),
    "a hook": lambda m: m[0].register_forward_hook(lambda module, args, output: 2 * output),
    "a child": lambda m: m.__setitem__(2, nn.Sigmoid()),
    "one child less": lambda m: m.__delitem__(2),
    "a buffer": lambda m: setattr(m[1], "running_mean", torch.ones(5)),
    "a buffer's values": lambda m: m[1].running_mean.add_(1),
    "a parameter": lambda m: setattr(m[1], "bias", nn.Parameter(torch.ones(5))),
    "a parameter's memory": lambda m: setattr(m[1].bias, "data", torch.ones(5)),
    "a buffer's memory": lambda m: setattr(m[1].running_mean, "data", torch.ones(5)),
    "a weight's values, unnoticed": lambda m: m[0].weight.data.add_(1),
    "the mode": lambda m: m.train(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_is_seen(change):
    torch.manual_seed(0)
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.BatchNorm2d(5), nn.ReLU()).eval()
    input = _cases.randn((2, 3, 4, 4))
    before = model(input)
    assert replay.replay([model], input) is not None
    CHANGES[change](model)
    expected = unfuse(copy.deepcopy(model))(input)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_parameter_of_one_value_that_was_replaced():
    model = FusedSequential(nn.ConvTranspose2d(3, 1, 4, 2, 1, bias=False), nn.BatchNorm2d(1)).eval()
    input = _cases.randn((2, 3, 4, 4))
    before = model(input)
    model[1].bias = nn.Parameter(torch.zeros(1))  # equal, and then not
    torch.testing.assert_close(model(input), before)
    model[1].bias += 1
    torch.testing.assert_close(model(input), before + 1)


@torch.no_grad()
def test_a_weight_in_another_memory_order_is_computed_with_but_not_repeated():
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    input = _cases.randn((2, 3, 4, 4))
    before = model(input)
    assert replay.replay([model], input) is not None
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(input), before)
    assert replay.replay([model], input) is None


@torch.no_grad()
def test_a_chain_is_kept_for_as_long_as_it_may_be_repeated():
    repeat = torch.ops.genimg_fast.block_chain_repeat
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    input = _cases.randn((2, 3, 4, 4))
    expected = model(input)
    chain = replay._known[model].chain
    assert torch.equal(repeat(input, chain), expected)
    assert repeat(input.double(), chain) is None
    del model
    gc.collect()
    assert repeat(input, chain) is None


@torch.no_grad()
def test_a_pass_with_a_layer_that_works_in_place_is_not_repeated_without_it():
    torch.manual_seed(0)
    model = FusedSequential(nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(3, 4, 3, padding=1)).eval()
    input = _cases.randn((2, 3, 4, 4))
    expected = unfuse(copy.deepcopy(model))(input.clone())
    for _ in range(2):
        torch.testing.assert_close(model(input.clone()), expected, rtol=1e-4, atol=1e-5)


class Negated(nn.Conv2d):
    def forward(self, input):
        return -super().forward(input)


@torch.no_grad()
def test_chains_of_the_same_first_layer_are_told_apart():
    conv, relu, tanh = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Tanh()
    input = _cases.randn((2, 3, 4, 4))
    raw = conv(input)
    with use_backend("native"):
        for _ in range(2):
            torch.testing.assert_close(run_in_turn([conv, relu], input), relu(raw), rtol=1e-4, atol=1e-5)
        assert replay.replay([conv, relu], input) is not None
        torch.testing.assert_close(run_in_turn([conv, tanh], input), tanh(raw), rtol=1e-4, atol=1e-5)
        assert replay.replay([conv, tanh], input) is not None
        conv.__class__ = Negated
        torch.testing.assert_close(run_in_turn([conv, tanh], input), tanh(-raw), rtol=1e-4, atol=1e-5)


def test_a_pass_that_is_repeated_does_not_keep_its_model():
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model(_cases.randn((2, 3, 4, 4)))
    assert replay._known.get(model) is not None
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None

# SPDX-License-Identifier: MIT
"""Outputs and gradients lie in memory as PyTorch's do, whatever the strides of the input: a user's `view` must go on working."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genimg_fast import _backend, functional, fuse
from genimg_fast.nn import FusedSequential
from genimg_fast.ops._memory_order import memory_format
from tests import _cases


def channels_last(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last)


INPUTS = {
    "contiguous": torch.randn(2, 16, 8, 6),
    "channels_last": channels_last(2, 16, 8, 6),
    "tokens of one image": torch.randn(1, 48, 16).transpose(1, 2).view(1, 16, 8, 6),
    "tokens": torch.randn(2, 48, 16).transpose(1, 2).unflatten(2, (8, 6)),
    "channels": channels_last(2, 48, 8, 6)[:, 16:32],
    "every other channel": channels_last(1, 32, 8, 6)[:, ::2],
    "crop": channels_last(2, 16, 12, 9)[:, :, 2:10, 1:7],
    "every other row": channels_last(2, 16, 16, 6)[:, :, ::2],
    "every other image": channels_last(4, 16, 8, 6)[::2],
    "an image for all": channels_last(1, 16, 8, 6).expand(3, -1, -1, -1),
    "a channel for all": torch.randn(2, 1, 8, 6).expand(-1, 16, -1, -1),
    "transposed": torch.randn(2, 16, 6, 8).transpose(2, 3),
    "one column": channels_last(2, 16, 8, 1),
    "one pixel": channels_last(2, 16, 1, 1),
    "one pixel, contiguous": torch.randn(2, 16, 1, 1),
    "one channel": torch.randn(2, 8, 6, 1).permute(0, 3, 1, 2),
}


def functions(channels):
    weight, statistics = torch.randn(channels, channels, 3, 3), (torch.zeros(channels), torch.ones(channels))
    arguments = {"stride": 1, "padding": 1}
    return [
        (partial(functional.conv2d_bn_act, weight=weight, **arguments), partial(F.conv2d, weight=weight, **arguments)),
        (
            partial(functional.conv_transpose2d_bn_act, weight=weight, **arguments),
            partial(F.conv_transpose2d, weight=weight, **arguments),
        ),
        (
            lambda x: functional.batch_norm_act(x, *statistics, training=False),
            lambda x: F.batch_norm(x, *statistics, training=False),
        ),
        (
            lambda x: functional.batch_norm_act(x, None, None, training=True),
            lambda x: F.batch_norm(x, None, None, training=True),
        ),
    ]


def strides(t):
    """Of the dimensions where they mean anything."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 4, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 5), (2, 8), (17, 1), (13, 40), (9, 60), (300, 310)])
def test_the_values_are_the_same_in_either_order(isa, channels, size, dtype):
    image = torch.randn(2, channels, *size, dtype=dtype)
    layer = nn.Conv2d(channels, 33, 3, padding=1, dtype=dtype)
    fuse(layer)
    with _backend.use_backend("native"):
        for records in (False, True):
            with torch.set_grad_enabled(records):
                nchw, other = layer(image), layer(image.to(memory_format=torch.channels_last))
            assert torch.equal(nchw, other)


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_strides_are_those_of_pytorch(name, records):
    input = INPUTS[name]
    for ours, theirs in functions(input.shape[1]):
        with _backend.use_backend("native"), torch.set_grad_enabled(records):
            actual = ours(input.detach().requires_grad_(records))
        expected = theirs(input)
        assert strides(actual) == strides(expected)
        torch.testing.assert_close(actual.detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["native", "auto"])
@pytest.mark.parametrize("records", [False, True])
def test_contiguous_images_of_one_channel_or_pixel_do_not_pass_for_channels_last(records, backend):
    """Later layers go by the strides: a discriminator that takes a view of its features raised an error on grey images."""
    torch.manual_seed(0)
    for layers in (
        [nn.ConvTranspose2d(4, 1, 4, 2, 1), nn.Tanh()],
        [nn.Conv2d(4, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU()],
        [nn.Conv2d(4, 16, 8), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)],
        [nn.Conv2d(4, 1, 3), nn.ReLU(), nn.ConvTranspose2d(1, 8, 4, 2, 1), nn.Sigmoid()],
    ):
        for model in (FusedSequential(*layers), nn.Sequential(*layers)):
            input = _cases.randn((8, 4, 8, 8)).requires_grad_(records)
            with _backend.use_backend(backend), torch.set_grad_enabled(records):
                assert memory_format(model.eval()(input)) is torch.contiguous_format


def test_the_gradient_of_a_contiguous_grey_image_does_not_pass_for_channels_last():
    layers = [nn.Conv2d(1, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
    for model in (FusedSequential(*layers), nn.Sequential(*layers)):
        image = _cases.randn((4, 1, 8, 8)).requires_grad_()
        with _backend.use_backend("native"):
            (grad,) = torch.autograd.grad(model(image).square().sum(), image)
        assert memory_format(grad) is torch.contiguous_format


def chains():
    torch.manual_seed(1)
    layers = [nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.Tanh()]
    return FusedSequential(*layers), nn.Sequential(*layers)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("of_upstream", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["contiguous", "channels_last"])
def test_strides_of_gradients_are_those_of_pytorch(name, of_upstream, create_graph):
    """PyTorch's F.instance_norm differentiates one image wrongly where its gradient does not lie as its output does."""
    input = INPUTS[name].detach().requires_grad_()

    def strides_of_gradients(function):
        output = function(input)
        order = torch.contiguous_format if of_upstream == "contiguous" else torch.channels_last
        upstream = torch.ones(output.shape).contiguous(memory_format=order).requires_grad_()
        found = [*torch.autograd.grad(output, input, upstream, create_graph=create_graph)]
        if create_graph:
            found += torch.autograd.grad(found[0].square().sum(), (input, upstream), allow_unused=True)
        return [strides(grad) for grad in found if grad is not None]

    for ours, theirs in (*functions(16), chains()):
        with _backend.use_backend("native"):
            actual = strides_of_gradients(ours)
        assert actual == strides_of_gradients(theirs)


def test_instance_normalisation_of_one_image_before_a_block():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.Identity(), nn.InstanceNorm2d(32), nn.Upsample(scale_factor=2)]
    plain = nn.Sequential(*layers, nn.Conv2d(32, 32, 3, padding=1), nn.LeakyReLU(0.2)).double()
    fused = copy.deepcopy(plain)
    fuse(fused)
    input, upstream = torch.randn(1, 3, 16, 16).double(), torch.randn(1, 32, 32, 32).double()
    for _ in range(2):
        for model in (plain, fused):
            model(input).backward(upstream)
    torch.testing.assert_close([p.grad for p in fused.parameters()], [p.grad for p in plain.parameters()])


@pytest.mark.parametrize("name", INPUTS)
def test_memory_format_is_what_pytorch_takes_it_for(name):
    assert memory_format(INPUTS[name]) is torch._prims_common.suggest_memory_format(INPUTS[name])

# SPDX-License-Identifier: MIT
"""The output lies in memory as PyTorch's does, whatever the strides of the input: a user's `view` must go on working."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from genimg_fast import _backend, functional
from genimg_fast.ops._convolution import memory_format


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


@pytest.mark.parametrize("name", INPUTS)
def test_memory_format_is_what_pytorch_takes_it_for(name):
    assert memory_format(INPUTS[name]) is torch._prims_common.suggest_memory_format(INPUTS[name])

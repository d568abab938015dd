# SPDX-License-Identifier: MIT
"""PyTorch's convolutions in the place of the CUDA operators, for tests of what stands around them on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from genimg_fast._block import Geometry
from genimg_fast.ops._memory_order import memory_format
from genimg_fast.reference.activation import activate

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")  # by their codes
calls: list[tuple] = []
"""What was called, in order."""


def _inference(
    input, weight, packed, bias, mean, var, bn_weight, bn_bias, eps, geometry, code, slope, tensor_cores, tile,
    channels_last=None,
):  # fmt: skip
    calls.append(("inference", geometry[0], packed is not None))
    if packed is not None:
        assert torch.equal(packed, weight.detach().flatten()), "packed weights of another state"
    raw = Geometry.of(geometry).convolve(input, weight, bias)
    if mean is not None:
        raw = F.batch_norm(raw, mean, var, bn_weight, bn_bias, False, 0.0, eps)
    raw = activate(raw, ACTIVATIONS[code], slope)
    if channels_last is None:
        channels_last = torch.channels_last in (memory_format(input), memory_format(weight))
    return raw.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _training(input, weight, bias, bn_weight, bn_bias, eps, geometry, code, slope, tensor_cores, tile):
    calls.append(("training", geometry[0]))
    raw = _inference(input, weight, None, bias, None, None, None, None, eps, geometry, 0, 0.0, tensor_cores, tile)
    var, mean = torch.var_mean(raw, (0, 2, 3), correction=0)
    out = activate(F.batch_norm(raw, mean, var, bn_weight, bn_bias, False, 0.0, eps), ACTIVATIONS[code], slope)
    return out, raw.contiguous(memory_format=torch.channels_last), mean, var


def _training_(
    input, weight, bias, bn_weight, bn_bias, running_mean, running_var, momentum, eps, geometry, code, slope, *tensor_cores
):  # fmt: skip
    results = _training(input, weight, bias, bn_weight, bn_bias, eps, geometry, code, slope, *tensor_cores)
    if running_mean is not None:
        raw = results[1]
        F.batch_norm(raw, running_mean, running_var, None, None, True, momentum, eps)
    return results[0].contiguous(memory_format=torch.channels_last), *results[1:]


def _pack(input, weight, geometry):
    calls.append(("pack",))
    return weight.detach().flatten().clone()


@pytest.fixture(autouse=True)
def cuda_convolutions() -> Iterator[None]:
    """On the CPU, in the tests of a module that imports this."""
    library = torch.library.Library("genimg_fast", "IMPL")
    for name, function in (("", _inference), ("_training", _training), ("_training_", _training_), ("_pack", _pack)):
        library.impl(f"convolution_block{name}", function, "CPU")
    calls.clear()
    yield
    library._destroy()

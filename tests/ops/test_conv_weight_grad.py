# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genimg_fast.backends import cpu
from tests import _cases

# N, channels of small, channels of large, H and W of small, kernel, stride, padding, dilation, and the rows and columns
# of large beyond what the taps need.  One channel, an image's three, sizes around the vectors, the tiles of 13 rows and
# the blocks of channels; bands that end inside an image; no overlap; holes between taps; padding beyond the kernel.
GEOMETRIES = [
    (2, 7, 5, 4, 5, 4, 2, 1, 1, 0),
    (5, 33, 40, 1, 1, 4, 1, 0, 1, 0),
    (6, 1, 70, 1, 1, 4, 1, 0, 1, 0),
    (3, 31, 3, 9, 8, 4, 2, 1, 1, 0),
    (1, 14, 1, 13, 11, 5, 2, 2, 1, 1),
    (2, 65, 17, 5, 6, 3, 1, 1, 1, 0),
    (2, 8, 6, 5, 4, 3, 2, 3, 2, 1),
    (2, 520, 4, 3, 3, 1, 1, 0, 1, 0),
    (1, 3, 66, 4, 3, 2, 2, 0, 1, 1),
    (2, 4, 9, 3, 3, 1, 3, 0, 1, 2),
    (1, 2, 3, 1, 2, 9, 1, 4, 1, 0),
]


def sizes(geometry):
    """The shapes of small, large and the weight."""
    n, c_small, c_large, h, w, k, stride, padding, dilation, beyond = geometry
    height, width = ((s - 1) * stride + dilation * (k - 1) + 1 - 2 * padding + beyond for s in (h, w))
    return (n, c_small, h, w), (n, c_large, height, width), (c_small, c_large, k, k)


def make_inputs(geometry, dtype=torch.float32):
    small, large, _ = sizes(geometry)
    return _cases.randn(small, dtype, 1), _cases.randn(large, dtype, 2)


def options(geometry):
    *_, k, stride, padding, dilation, _ = geometry
    return [k, k], [stride, stride], [padding, padding], [dilation, dilation]


def native(small, large, geometry, *prologue):
    return torch.ops.genimg_fast.conv_weight_grad(small, large, *options(geometry), *prologue)


def reference(small, large, geometry):
    """PyTorch's gradient of the weight of the Conv2d that leads from large to small."""
    _, stride, padding, dilation = options(geometry)
    weight = small.new_zeros(sizes(geometry)[2]).requires_grad_()
    F.conv2d(large, weight, None, stride, padding, dilation).backward(small)
    return weight.grad


def assert_parity(actual, small, large, geometry, factor=_cases.ERROR_FACTOR, what=""):
    exact = reference(small.double(), large.double(), geometry)
    _cases.assert_accurate(actual, exact, reference(small, large, geometry), factor, what)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_direct_matches_float64(isa, geometry, dtype):
    small, large = make_inputs(geometry, dtype)
    with cpu.force_variant("direct"):
        assert_parity(native(small, large, geometry), small, large, geometry)

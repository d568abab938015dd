# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genimg_fast.backends import cpu
from genimg_fast.ops._check import ACTIVATIONS
from genimg_fast.reference.activation import activate
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


# Of Toom-Cook (kernel 3, 4 or 5, stride 2; kernel 3 or 4, stride 1): sizes around its tiles of 2 and 4, channels around the vectors
# and the blocks, bands that end inside an image, parts of a few channels' many tiles, one block of small after another,
# any padding.
TOOM_COOK_GEOMETRIES = [
    (1, 3, 5, 1, 1, 4, 2, 1, 1, 0),
    (2, 7, 5, 4, 5, 4, 2, 1, 1, 0),
    (3, 17, 33, 7, 9, 4, 2, 1, 1, 0),
    (2, 140, 9, 6, 3, 4, 2, 1, 1, 0),
    (40, 5, 18, 13, 14, 4, 2, 1, 1, 0),
    (9, 300, 20, 4, 4, 4, 2, 1, 1, 0),
    (10, 140, 34, 13, 9, 4, 2, 1, 1, 0),
    (2, 6, 18, 5, 7, 4, 2, 0, 1, 1),
    (2, 18, 6, 7, 6, 4, 2, 3, 1, 0),
    (1, 3, 5, 1, 1, 3, 1, 1, 1, 0),
    (2, 17, 33, 7, 9, 3, 1, 1, 1, 0),
    (3, 140, 9, 6, 3, 3, 1, 0, 1, 0),
    (40, 5, 18, 13, 14, 3, 1, 2, 1, 0),
    (9, 300, 20, 4, 4, 3, 1, 1, 1, 0),
    (10, 140, 90, 9, 9, 3, 1, 1, 1, 0),
    (2, 17, 33, 7, 9, 4, 1, 1, 1, 0),
    (40, 5, 18, 13, 14, 4, 1, 2, 1, 0),
    (9, 300, 20, 4, 4, 4, 1, 0, 1, 0),
    (10, 140, 90, 9, 9, 4, 1, 1, 1, 0),
    (2, 17, 33, 7, 9, 5, 2, 2, 1, 1),
    (40, 5, 18, 13, 14, 5, 2, 1, 1, 0),
    (9, 300, 20, 4, 4, 5, 2, 2, 1, 0),
    (10, 140, 90, 9, 9, 5, 2, 0, 1, 1),
    (2, 17, 33, 7, 9, 3, 2, 1, 1, 0),
    (40, 5, 18, 13, 14, 3, 2, 0, 1, 1),
    (9, 300, 20, 4, 4, 3, 2, 1, 1, 1),
    (10, 140, 90, 9, 9, 3, 2, 2, 1, 0),
]


@pytest.mark.parametrize("variant", ["toom_cook_2", "toom_cook_4"])
@pytest.mark.parametrize("geometry", TOOM_COOK_GEOMETRIES)
def test_toom_cook_matches_float64(isa, geometry, variant):
    small, large = make_inputs(geometry)
    with cpu.force_variant(variant):
        actual = native(small, large, geometry)
    assert_parity(actual, small, large, geometry, _cases.ERROR_FACTOR_WINOGRAD)


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("side", ["small", "large"])
def test_prologue(isa, side, activation, variant):
    """Normalised and activated as it is read, padding and what hangs over the edge excepted."""
    geometry = (2, 18, 33, 5, 6, 4, 2, 1, 1, 0)  # 60 pixels: unpacked serves it
    small, large = make_inputs(geometry)
    stored = {"small": small, "large": large}[side]
    mean, scale, shift = (_cases.randn((stored.shape[1],), seed=seed) for seed in (3, 4, 5))

    def apply(t):
        mean_, scale_, shift_ = (v.to(t).view(-1, 1, 1) for v in (mean, scale, shift))
        return activate((t - mean_) * scale_ + shift_, activation, 0.2)

    def both(dtype):
        return [apply(t.to(dtype)) if t is stored else t.to(dtype) for t in (small, large)]

    rows = torch.stack([mean, scale, shift])
    prologues = (rows, None) if side == "small" else (None, rows)
    with cpu.force_variant(variant):
        actual = native(small, large, geometry, *prologues, ACTIVATIONS[activation], 0.2)
    exact = reference(*both(torch.float64), geometry)
    _cases.assert_accurate(actual, exact, reference(*both(torch.float32), geometry), _cases.ERROR_FACTOR_WINOGRAD)


@pytest.mark.parametrize("geometry", [GEOMETRIES[4], GEOMETRIES[5], GEOMETRIES[7]])
def test_prologue_of_any_geometry(isa, geometry):
    small, large = make_inputs(geometry, torch.float64)
    rows = [_cases.randn((3, t.shape[1]), torch.float64, seed) for seed, t in enumerate((small, large))]
    actual = native(small, large, geometry, *rows, ACTIVATIONS["leaky_relu"], 0.2)

    def apply(t, row):
        mean, scale, shift = row.view(3, -1, 1, 1)
        return F.leaky_relu((t - mean) * scale + shift, 0.2)

    expected = reference(apply(small, rows[0]), apply(large, rows[1]), geometry)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# Of unpacked: one pixel, the most there may be, channels of small around those summed at once, gradients that are
# written past the caches, holes between taps.
UNPACKED_GEOMETRIES = [
    (1, 7, 16, 1, 1, 4, 1, 0, 1, 0),
    (1, 19, 16, 8, 8, 3, 1, 1, 1, 0),
    (2, 24, 32, 3, 4, 5, 2, 2, 1, 1),
    (3, 260, 80, 2, 3, 4, 2, 1, 1, 0),
    (2, 9, 16, 5, 4, 3, 2, 3, 2, 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("geometry", UNPACKED_GEOMETRIES)
def test_unpacked_matches_float64(isa, geometry, dtype):
    small, large = make_inputs(geometry, dtype)
    with cpu.force_variant("unpacked"):
        assert_parity(native(small, large, geometry), small, large, geometry)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "channels_last"])
def test_layouts(layout):
    geometry = (3, 20, 6, 5, 5, 4, 2, 1, 1, 0)
    small, large = make_inputs(geometry)
    laid_out = [dict(_cases.layouts(tuple(t.shape)))[layout](t) for t in (small, large)]
    assert torch.equal(native(*laid_out, geometry), native(small, large, geometry))


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize(
    "geometry",
    [(40, 5, 18, 13, 14, 4, 2, 1, 1, 0), (2, 140, 70, 6, 3, 4, 2, 1, 1, 0), (2, 140, 70, 6, 2, 4, 2, 1, 1, 0)],
)
def test_result_does_not_depend_on_the_number_of_threads(isa, geometry, variant):
    small, large = make_inputs(geometry)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        with cpu.force_variant(variant):
            results.append(native(small, large, geometry))
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("side", ["small", "large"])
def test_a_nan_reaches_its_channel_and_no_other(isa, side, variant):
    geometry = (3, 20, 18, 6, 6, 4, 2, 1, 1, 0)
    small, large = make_inputs(geometry)
    clean = reference(small, large, geometry)
    (small if side == "small" else large)[1, 17, 3, 2] = float("nan")
    with cpu.force_variant(variant):
        actual = native(small, large, geometry)
    channel, expected = (actual, clean) if side == "small" else (actual.transpose(0, 1), clean.transpose(0, 1))
    touched = reference(small, large, geometry).isnan()
    assert actual[touched].isnan().all()
    others = [c for c in range(len(channel)) if c != 17]
    torch.testing.assert_close(channel[others], expected[others], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("small", "large"),
    [((0, 3, 4, 4), (0, 5, 8, 8)), ((2, 3, 0, 4), (2, 5, 0, 8)), ((2, 0, 4, 4), (2, 5, 8, 8)), ((2, 3, 4, 4), (2, 0, 8, 8))],
)  # fmt: skip
def test_sizes_of_zero(small, large):
    grad = torch.ops.genimg_fast.conv_weight_grad(torch.ones(small), torch.ones(large), [4, 4], [2, 2], [1, 1], [1, 1])
    assert torch.equal(grad, torch.zeros(small[1], large[1], 4, 4))


@pytest.mark.parametrize("geometry", [(16, 64, 48, 8, 8, 4, 2, 1, 1, 0), (16, 64, 48, 8, 8, 3, 1, 1, 1, 0)])
def test_the_cost_rule(isa, geometry):
    small, large = make_inputs(geometry)

    def run(variant):
        with cpu.force_variant(variant):
            return native(small, large, geometry)

    direct, m2, m4 = run("direct"), run("toom_cook_2"), run("toom_cook_4")
    assert not torch.equal(direct, m2)  # each is computed in its own way
    assert not torch.equal(direct, m4)
    assert not torch.equal(m2, m4)
    assert torch.equal(native(small, large, geometry), m4)
    before = cpu.allow_winograd
    cpu.allow_winograd = False
    try:
        assert torch.equal(native(small, large, geometry), direct)
    finally:
        cpu.allow_winograd = before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"small": torch.ones(3, 3, 4, 4)}, "small must be"),
        ({"large": torch.ones(2, 5, 8)}, "small must be"),
        ({"large": torch.ones(2, 5, 8, 8, dtype=torch.float64)}, "differ in dtype"),
        ({"kernel_size": [4]}, "must be pairs"),
        ({"kernel_size": [0, 4]}, "must be pairs"),
        ({"stride": [2, 0]}, "must be pairs"),
        ({"padding": [-1, 1]}, "must be pairs"),
        ({"dilation": [0, 1]}, "must be pairs"),
        ({"large_prologue": torch.ones(3, 4)}, "a prologue must be"),
        ({"small_prologue": torch.ones(3, 3, dtype=torch.float64)}, "a prologue must be"),
    ],
)
def test_what_would_touch_foreign_memory_is_refused(change, message):
    arguments = {
        "small": torch.ones(2, 3, 4, 4), "large": torch.ones(2, 5, 8, 8), "kernel_size": [4, 4], "stride": [2, 2],
        "padding": [1, 1], "dilation": [1, 1], "small_prologue": None, "large_prologue": None,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.genimg_fast.conv_weight_grad(*(arguments | change).values())


def test_opcheck():
    small, large = make_inputs(GEOMETRIES[0])
    torch.library.opcheck(torch.ops.genimg_fast.conv_weight_grad.default, (small, large, *options(GEOMETRIES[0])))

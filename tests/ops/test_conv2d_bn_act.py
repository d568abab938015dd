# SPDX-License-Identifier: MIT
from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import nn

from genimg_fast import _backend, functional, fuse, unfuse
from genimg_fast.backends import cpu
from genimg_fast.nn import FusedSequential
from genimg_fast.ops._check import ACTIVATIONS
from genimg_fast.ops.conv2d_bn_act import conv2d_bn_act
from genimg_fast.reference.conv2d_bn_act import conv2d_bn_act as reference
from tests import _cases
from tests._blocks import train_block

# N, Cin, Cout, H, W, kernel, stride, padding, dilation.  The models' own kernels on sizes around the tile (13 rows of 32
# channels) and around a vector's depth, one pixel, one channel, gaps between the taps' pixels, padding beyond the kernel.
GEOMETRIES = [
    (2, 7, 5, 8, 10, 4, 2, 1, 1),
    (5, 16, 33, 4, 4, 4, 1, 0, 1),
    (3, 8, 31, 9, 7, 3, 1, 1, 1),
    (13, 3, 32, 6, 2, 2, 2, 0, 1),
    (2, 1, 40, 5, 3, 3, 2, 1, 1),
    (1, 5, 3, 7, 7, 5, 2, 2, 1),
    (2, 4, 64, 9, 9, 3, 1, 2, 2),
    (2, 4, 9, 7, 7, 1, 3, 2, 1),
    (1, 6, 1, 1, 9, 3, 2, 1, 1),
    (2, 3, 17, 4, 5, 2, 1, 3, 3),
    (0, 3, 4, 4, 4, 4, 2, 1, 1),
]


def make_inputs(geometry, dtype=torch.float32):
    n, c_in, c_out, h, w, k, *_ = geometry
    shapes = [(n, c_in, h, w), (c_out, c_in, k, k), (c_out,), (c_out,), (c_out,), (c_out,), (c_out,)]
    input, weight, bias, mean, var, bn_weight, bn_bias = (_cases.randn(s, dtype, i) for i, s in enumerate(shapes))
    # of a network: were sums of the size of their number, all but those near 0 would saturate a tanh
    weight = weight / max(c_in * k * k, 1) ** 0.5
    return input, weight, bias, mean, var.abs() + 0.5, bn_weight, bn_bias


def options(geometry, **more):
    *_, stride, padding, dilation = geometry
    return {"stride": stride, "padding": padding, "dilation": dilation, "negative_slope": 0.2, **more}


def run(function, tensors, **kwargs):
    """Output, running statistics afterwards and all gradients, under an upstream gradient that varies."""
    input, weight, bias, mean, var, bn_weight, bn_bias = (None if t is None else t.clone() for t in tensors)
    leaves = [t.requires_grad_() for t in (input, weight, bias, bn_weight, bn_bias) if t is not None]
    out = function(input, weight, bias, mean, var, bn_weight, bn_bias, **kwargs)
    (out * _cases.randn(tuple(out.shape), out.dtype, 99)).sum().backward()
    return [out.detach(), mean, var, *(t.grad for t in leaves)]


def assert_parity(tensors, **kwargs):
    if kwargs.get("training"):
        tensors = [*tensors[:2], None, *tensors[3:]]  # normalisation removes a bias: its gradient is 0, all noise
    exact = run(reference, [None if t is None else t.double() for t in tensors], **kwargs)
    torch_result = run(reference, tensors, **kwargs)
    with _backend.use_backend("native"):
        actual = run(conv2d_bn_act, tensors, **kwargs)
    for i, (a, e, t) in enumerate(zip(actual, exact, torch_result, strict=True)):
        if e is not None:
            _cases.assert_accurate(a, e, t, what=f"result {i}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_inference_matches_float64(isa, geometry, layout):
    tensors = make_inputs(geometry)
    kwargs = options(geometry, activation="leaky_relu")
    exact = reference(*(t.double() for t in tensors), **kwargs)
    torch_result = reference(*tensors, **kwargs)
    input = dict(_cases.layouts(tuple(tensors[0].shape)))[layout](tensors[0])
    with _backend.use_backend("native"), torch.no_grad():
        actual = conv2d_bn_act(input, *tensors[1:], **kwargs)
    _cases.assert_accurate(actual, exact, torch_result)
    channels_last = input.shape[1] > 1 and input.stride(1) == 1 and input.stride(3) == input.shape[1]
    assert actual.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


# Of Toom-Cook (kernel 3, 4 or 5 and stride 2, kernel 3 or 4 and stride 1): sizes around its tiles of 2 and 4, odd ones, any padding,
# bands that end inside an image and bands of several images, channels around the vector widths, weights so many that
# they are packed past the caches.  Of narrow: one to four channels, any kernel.  Of direct, where it reads padded rows
# (few channels): rows of several tiles, images below the kernel's height, padding beyond the kernel, gaps between the
# kernel's places, sums that are folded.  Of unpacked (up to 64 pixels): one pixel, one a row, rows that do not fill a
# tile, channels around the vectors, a depth that is folded, gaps between the kernel's places.
VARIANT_GEOMETRIES = [
    (3, 7, 5, 8, 10, 4, 2, 1, 1),
    (2, 17, 33, 15, 17, 4, 2, 1, 1),
    (1, 3, 3, 129, 66, 4, 2, 1, 1),
    (70, 3, 16, 2, 6, 4, 2, 1, 1),
    (1, 20, 70, 16, 16, 4, 2, 1, 1),
    (2, 150, 65, 8, 8, 4, 2, 1, 1),
    (2, 5, 18, 9, 12, 4, 2, 0, 1),
    (2, 5, 18, 9, 12, 4, 2, 3, 1),
    (2, 9, 1, 6, 5, 3, 2, 1, 1),
    (2, 17, 33, 11, 9, 3, 1, 1, 1),
    (1, 20, 70, 12, 10, 3, 1, 0, 1),
    (3, 9, 2, 1, 3, 3, 1, 2, 1),
    (9, 16, 8, 8, 9, 3, 1, 1, 1),
    (2, 17, 33, 11, 9, 4, 1, 1, 1),
    (1, 20, 70, 12, 10, 4, 1, 0, 1),
    (9, 8, 8, 9, 8, 4, 1, 2, 1),
    (1, 150, 65, 7, 7, 4, 1, 1, 1),
    (2, 17, 33, 15, 17, 5, 2, 2, 1),
    (1, 20, 70, 21, 20, 5, 2, 0, 1),
    (9, 8, 8, 16, 17, 5, 2, 1, 1),
    (2, 150, 65, 16, 16, 5, 2, 2, 1),
    (2, 17, 33, 15, 17, 3, 2, 1, 1),
    (1, 20, 70, 21, 20, 3, 2, 0, 1),
    (9, 8, 8, 16, 17, 3, 2, 2, 1),
    (2, 150, 65, 16, 16, 3, 2, 1, 1),
    (1, 16, 4, 5, 20, 5, 1, 2, 1),
    (2, 6, 2, 7, 3, 3, 3, 1, 2),
    (2, 3, 33, 20, 41, 4, 2, 1, 1),
    (1, 2, 18, 3, 14, 5, 1, 3, 1),
    (2, 1, 9, 1, 17, 2, 1, 3, 1),
    (2, 3, 5, 9, 40, 2, 3, 1, 1),
    (1, 16, 35, 6, 18, 4, 2, 1, 1),
    (2, 16, 33, 2, 2, 4, 2, 1, 1),
    (3, 32, 7, 4, 2, 4, 2, 1, 1),
    (1, 260, 18, 8, 8, 4, 2, 1, 1),
    (2, 16, 20, 5, 6, 3, 1, 1, 1),
    (3, 16, 5, 4, 4, 5, 2, 2, 1),
    (2, 16, 9, 7, 7, 3, 1, 0, 2),
    (0, 3, 4, 4, 4, 4, 2, 1, 1),
    (0, 3, 4, 16, 16, 4, 2, 1, 1),
]


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("geometry", VARIANT_GEOMETRIES)
def test_each_variant_matches_float64(isa, geometry, variant):
    input, weight, bias, mean, var, bn_weight, bn_bias = make_inputs(geometry)
    factor = _cases.ERROR_FACTOR_WINOGRAD if variant.startswith("toom_cook") else _cases.ERROR_FACTOR
    fixed = (input, weight, bias, mean, var, bn_weight, bn_bias)
    batch = (input, weight, None, None, None, bn_weight, bn_bias)
    for tensors, training, activation in [
        (fixed, False, "tanh"),
        (fixed, False, "relu"),
        (batch, True, "leaky_relu"),
    ]:
        if training and geometry[0] == 0:
            continue
        kwargs = options(geometry, training=training, activation=activation)
        exact = reference(*(None if t is None else t.double() for t in tensors), **kwargs)
        torch_result = reference(*tensors, **kwargs)
        with _backend.use_backend("native"), cpu.force_variant(variant), torch.no_grad():
            actual = conv2d_bn_act(*tensors, **kwargs)
        _cases.assert_accurate(actual, exact, torch_result, factor, f"{activation}, training={training}")


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("c_in", [3, 20])
def test_axes_that_differ(isa, c_in, variant):
    input, weight = _cases.randn((2, c_in, 13, 23)), _cases.randn((18, c_in, 3, 5), seed=1)
    kwargs = {"stride": (1, 2), "padding": (3, 2), "dilation": (2, 1)}
    with _backend.use_backend("native"), cpu.force_variant(variant), torch.no_grad():
        actual = conv2d_bn_act(input, weight, **kwargs)
    _cases.assert_accurate(
        actual, reference(input.double(), weight.double(), **kwargs), reference(input, weight, **kwargs)
    )


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("geometry", [(3, 8, 19, 74, 24, 4, 2, 1, 1), (3, 8, 19, 8, 10, 4, 2, 1, 1)])
def test_statistics_of_each_variant(isa, geometry, variant):
    input, weight, *_ = make_inputs(geometry)
    bias = torch.linspace(-1000, 1000, 19)
    with cpu.force_variant(variant):
        _, raw, mean, var = train_block(False, input, weight, bias)
    channels = raw.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), channels.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), channels.var(1, unbiased=False), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("geometry", [(5, 8, 40, 18, 12, 4, 2, 1, 1), (5, 8, 90, 6, 8, 4, 2, 1, 1)])
def test_each_variant_is_the_same_on_any_number_of_threads(isa, geometry, variant):
    input, weight, *_ = make_inputs(geometry)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with cpu.force_variant(variant):
            results.append(train_block(False, input, weight))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# The convolution is also a data gradient: of ConvTranspose2d, with the same weight, and of Conv2d with stride 1, with
# the kernel mirrored.  N, channels of the layer's input and output, H, W, kernel, stride, padding, transposed.
DATA_GRADIENTS = [
    (2, 33, 17, 7, 9, 4, 2, 1, True),
    (3, 5, 2, 4, 3, 5, 3, 2, True),
    (2, 12, 35, 8, 9, 3, 1, 1, False),
    (2, 9, 8, 11, 10, 3, 1, 2, False),
    (2, 20, 9, 8, 8, 4, 1, 1, False),
    (1, 70, 320, 8, 8, 3, 1, 1, False),
    (2, 12, 35, 9, 8, 4, 1, 2, False),
    (2, 33, 17, 8, 9, 5, 2, 2, True),
    (2, 17, 33, 17, 16, 5, 2, 2, False),
    (2, 33, 17, 8, 9, 3, 2, 1, True),
    (2, 17, 33, 17, 16, 3, 2, 1, False),
    (2, 9, 40, 16, 15, 3, 2, 1, False),
    (2, 17, 33, 6, 4, 3, 1, 1, False),
    (1, 16, 48, 3, 4, 4, 2, 1, True),
    (1, 48, 40, 8, 8, 4, 2, 1, False),
    (8, 20, 64, 17, 2, 6, 2, 3, False),
]


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("geometry", DATA_GRADIENTS)
def test_data_gradients_match_float64(isa, geometry, variant):
    n, c_in, c_out, h, w, kernel, stride, padding, transposed = geometry
    input = _cases.randn((n, c_in, h, w))
    weight = _cases.randn((c_in, c_out, kernel, kernel) if transposed else (c_out, c_in, kernel, kernel), seed=1)
    layer = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    ours = functional.conv_transpose2d_bn_act if transposed else functional.conv2d_bn_act
    grad = _cases.randn(tuple(layer(input, weight, None, stride, padding).shape), seed=2)

    def gradient(dtype):
        x = input.to(dtype).requires_grad_()
        return torch.autograd.grad(layer(x, weight.to(dtype), None, stride, padding), x, grad.to(dtype))[0]

    x = input.clone().requires_grad_()
    with cpu.force_variant(variant), _backend.use_backend("native"):
        actual = torch.autograd.grad(ours(x, weight, stride=stride, padding=padding), x, grad)[0]
    factor = _cases.ERROR_FACTOR_WINOGRAD if variant.startswith("toom_cook") else _cases.ERROR_FACTOR
    _cases.assert_accurate(actual, gradient(torch.float64), gradient(torch.float32), factor)


# Channels around the vectors; padding, which must stay 0.
@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("kernel", [(4, 2, 1, 1), (3, 1, 1, 1), (4, 1, 1, 1), (5, 2, 2, 1), (3, 2, 1, 1)])
@pytest.mark.parametrize("channels", [(19, 35), (16, 2)])
def test_the_block_before_is_normalised_as_it_is_read(isa, channels, kernel, variant):
    middle, c_out = channels
    torch.manual_seed(0)
    model = FusedSequential(
        *(nn.Conv2d(3, middle, 1), nn.BatchNorm2d(middle), nn.Sigmoid()),
        *(nn.Conv2d(middle, c_out, *kernel), nn.LeakyReLU(0.2)),
    )
    nn.init.normal_(model[1].bias)
    plain = unfuse(copy.deepcopy(model))
    input = _cases.randn((2, 3, 10, 13))
    with cpu.force_variant(variant), _backend.use_backend("native"):
        actual = model(input)
    factor = _cases.ERROR_FACTOR_WINOGRAD if variant.startswith("toom_cook") else _cases.ERROR_FACTOR
    exact = copy.deepcopy(plain).double()(input.double())
    _cases.assert_accurate(actual.detach(), exact.detach(), plain(input).detach(), factor)


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_variant_loses_a_nan_or_spreads_it_beyond_its_tile(isa, variant, value):
    geometry = (2, 3, 5, 26, 26, 4, 2, 1, 1)
    input, weight, *_ = make_inputs(geometry)
    clean = reference(input, weight, **options(geometry))
    input[1, 1, 10, 13] = value
    expected = reference(input, weight, **options(geometry))
    with _backend.use_backend("native"), cpu.force_variant(variant), torch.no_grad():
        actual = conv2d_bn_act(input, weight, **options(geometry, activation="relu"))
    touched = ~expected.isfinite()
    # ReLU makes a plain -inf a finite 0; Toom-Cook's may be NaN.
    assert not actual[touched & ~(expected == -float("inf"))].isfinite().any()
    far = torch.ones_like(touched)
    far[1, :, 4:8, 4:8] = False  # the tile of outputs that see it
    torch.testing.assert_close(actual[far], clean.relu()[far], rtol=1e-4, atol=1e-4)


def test_the_cost_rule_prefers_plain_sums_only_if_told(isa):
    input, weight = _cases.randn((8, 64, 32, 32)), _cases.randn((64, 64, 4, 4), seed=1)

    def run_with(allowed):
        before = cpu.allow_winograd
        cpu.allow_winograd = allowed
        try:
            with _backend.use_backend("native"), torch.no_grad():
                return conv2d_bn_act(input, weight, stride=2, padding=1)
        finally:
            cpu.allow_winograd = before

    def forced(variant):
        with cpu.force_variant(variant), _backend.use_backend("native"), torch.no_grad():
            return conv2d_bn_act(input, weight, stride=2, padding=1)

    assert torch.equal(run_with(False), forced("direct"))
    assert torch.equal(run_with(True), forced("toom_cook_4"))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if g[0]])
def test_gradients_match_float64(isa, geometry, training):
    assert_parity(make_inputs(geometry), **options(geometry, training=training, activation="leaky_relu"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["training", "fixed", "none"])
def test_activations(isa, activation, norm):
    geometry = GEOMETRIES[2]
    input, weight, bias, mean, var, bn_weight, bn_bias = make_inputs(geometry)
    tensors = [input, weight, bias] + ([None] * 4 if norm == "none" else [mean, var, bn_weight, bn_bias])
    assert_parity(tensors, **options(geometry, training=norm == "training", activation=activation))


def test_optional_arguments():
    geometry = GEOMETRIES[2]
    input, weight, *_ = make_inputs(geometry)
    assert_parity([input, weight, None, None, None, None, None], **options(geometry, training=True, activation="relu"))
    assert_parity([input, weight, None, None, None, None, None], **options(geometry, activation="tanh"))


def test_gradient_of_a_bias_that_normalisation_removes_is_nearly_zero():
    geometry = GEOMETRIES[2]
    bias_grad = run(conv2d_bn_act, make_inputs(geometry), **options(geometry, training=True))[5]
    torch.testing.assert_close(bias_grad, torch.zeros_like(bias_grad), atol=1e-4, rtol=0)


def test_float64(isa):
    for geometry in GEOMETRIES[:4]:
        assert_parity(make_inputs(geometry, torch.float64), **options(geometry, training=True, activation="tanh"))


def test_statistics_survive_a_mean_far_from_zero(isa):
    geometry = (64, 8, 16, 16, 16, 4, 2, 1, 1)
    input, weight, _, *_ = make_inputs(geometry)
    bias = torch.full((16,), 1000.0)
    exact = reference(input.double(), weight.double(), bias.double(), training=True, **options(geometry))
    torch_result = reference(input, weight, bias, training=True, **options(geometry))
    with _backend.use_backend("native"):
        actual = conv2d_bn_act(input, weight, bias, training=True, **options(geometry))
    _cases.assert_accurate(actual, exact, torch_result)


@pytest.mark.parametrize("kernel", [(4, 2), (3, 1)])
def test_statistics_survive_an_outlier_that_comes_first(isa, kernel):
    input, weight, *_ = make_inputs(geometry := (16, 16, 32, 32, 32, *kernel, 1, 1))
    input[0, :, :2, :2] *= 1000
    exact = torch.nn.functional.conv2d(input.double(), weight.double(), None, kernel[1], 1)
    exact_var, exact_mean = torch.var_mean(exact, (0, 2, 3))
    mean, var = torch.zeros(32), torch.ones(32)
    with _backend.use_backend("native"):
        conv2d_bn_act(input, weight, None, mean, var, training=True, momentum=1.0, **options(geometry))
    torch.testing.assert_close(mean.double(), exact_mean, rtol=0, atol=1e-6 * exact_var.max().sqrt().item())
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=0)


def test_nan_and_inf_travel(isa):
    geometry = GEOMETRIES[2]
    tensors = make_inputs(geometry)
    tensors[0][0, 0, 2, 3], tensors[0][1, 1, 0, 0] = float("nan"), float("inf")
    with _backend.use_backend("native"), torch.no_grad():
        actual = conv2d_bn_act(*tensors, **options(geometry, activation="relu"))
    torch.testing.assert_close(actual, reference(*tensors, **options(geometry, activation="relu")), equal_nan=True)


def test_result_does_not_depend_on_the_number_of_threads(isa):
    geometry = GEOMETRIES[2]
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with _backend.use_backend("native"):
            results.append(run(conv2d_bn_act, make_inputs(geometry), **options(geometry, training=True))[:3])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"groups": 3}, "groups=3"), ({"negative_slope": -0.5}, "negative_slope")],
)
def test_what_the_kernel_cannot_do_is_correct_and_explained(more, reason):
    groups = more.get("groups", 1)
    input, weight = _cases.randn((2, 6, 8, 8)), _cases.randn((9, 6 // groups, 4, 4), seed=1)
    kwargs = {"stride": 2, "padding": 1, "training": True, "activation": "leaky_relu", **more}
    with _backend.record_decisions() as decisions:
        actual = conv2d_bn_act(input, weight, **kwargs)
    torch.testing.assert_close(actual, reference(input, weight, **kwargs))
    assert reason in decisions[0].reason
    assert decisions[1].op == "batch_norm_act"
    with _backend.use_backend("native"), pytest.raises(RuntimeError, match=reason):
        conv2d_bn_act(input, weight, **kwargs)


@pytest.mark.parametrize(("c_in", "c_out"), [(0, 4), (6, 0)])
def test_a_weight_without_elements_is_left_to_pytorch(c_in, c_out):
    input, weight = torch.ones(2, c_in, 8, 8), torch.ones(c_out, c_in, 4, 4)
    with _backend.record_decisions() as decisions, contextlib.suppress(RuntimeError):  # PyTorch refuses most of them
        conv2d_bn_act(input, weight, stride=2, padding=1)
    assert [d.reason for d in decisions] == ["a weight without elements"]
    layer = nn.Conv2d(6, 4, 4, 2, 1)
    layer.weight, layer.bias = nn.Parameter(weight), None
    fuse(layer)
    with _backend.use_backend("native"), pytest.raises(RuntimeError, match="a weight without elements"):
        layer(input)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"input": torch.zeros(2, 5, 8, 8)},
            ValueError,
            r"input has 5 channels but weight of shape \(4, 6, 4, 4\) takes 6",
        ),
        ({"input": torch.zeros(6)}, ValueError, r"input must be \(N, C, H, W\) or \(C, H, W\), got shape \(6,\)"),
        ({"weight": torch.zeros(4, 6, 4)}, ValueError, r"weight must have 4 dimensions, got shape \(4, 6, 4\)"),
        ({"weight": torch.zeros(4, 6, 4, 4).double()}, TypeError, "weight is torch.float64 but input is torch.float32"),
        (
            {"bias": torch.zeros(5)},
            ValueError,
            r"bias must have shape \(4,\) \(one value an output channel\), got \(5,\)",
        ),
        ({"running_mean": torch.zeros(4)}, ValueError, "running_mean and running_var must be given together"),
        (
            {"input": torch.zeros(1, 6, 4, 4), "training": True, "stride": 1, "padding": 0},
            ValueError,
            r"Expected more than 1 value per channel when training, got output size \(1, 4, 1, 1\)",
        ),
        ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
        ({"activation": "gelu"}, ValueError, "activation must be one of 'none', 'relu', .* got 'gelu'"),
        ({"stride": 0}, ValueError, "stride must be one or two integers >= 1, got 0"),
        ({"stride": 2.0}, ValueError, "stride must be one or two integers >= 1, got 2.0"),
        ({"padding": (1, 1, 1)}, ValueError, r"padding must be one or two integers >= 0, got \(1, 1, 1\)"),
        ({"training": True, "eps": 0.0}, ValueError, "_bn_act: eps must be > 0 when training, got 0.0"),
        ({"training": True, "eps": "1e-5"}, TypeError, "_bn_act: eps must be a number, got str"),
        ({"training": True, "momentum": "0.1"}, TypeError, "_bn_act: momentum must be a number, got str"),
        ({"training": "yes"}, TypeError, "_bn_act: training must be True or False, got str"),
        ({"negative_slope": "0.2"}, TypeError, "_bn_act: negative_slope must be a number, got str"),
        ({"groups": "1"}, ValueError, "groups must be an integer >= 1, got '1'"),
        ({"groups": 0}, ValueError, "groups must be an integer >= 1, got 0"),
        ({"bn_weight": torch.ones(4)}, ValueError, "conv2d_bn_act: bn_weight and bn_bias are those of a batch norm"),
        ({"dilation": 0}, ValueError, "dilation must be one or two integers >= 1, got 0"),
    ],
)
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, change, error, message):
    arguments = {
        "input": torch.zeros(2, 6, 8, 8),
        "weight": torch.zeros(4, 6, 4, 4),
        "stride": 2,
        "padding": 1,
        **change,
    }
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        conv2d_bn_act(**arguments)


@pytest.mark.parametrize(("size", "kernel", "stride", "native"), [(8, 3, 1, False), (48, 3, 1, True), (8, 4, 2, True)])
def test_auto_leaves_gradients_of_little_work_to_torch(size, kernel, stride, native):
    """But where PyTorch prepares as long for them, at kernels with strides."""
    weight = torch.zeros(32, 32, kernel, kernel, requires_grad=True)
    with _backend.record_decisions() as decisions:
        conv2d_bn_act(torch.zeros(1, 32, size, size), weight, stride=stride, padding=1)
    assert decisions[0].native == native
    assert native or "so little work" in decisions[0].reason


def test_auto_leaves_a_lone_layer_of_few_channels_to_torch():
    x, norm = _cases.randn((16, 16, 32, 32)), {"bn_weight": torch.ones(16), "bn_bias": torch.zeros(16)}
    few, more = (torch.zeros(n, 16, 3, 3, requires_grad=True) for n in (16, 32))
    with _backend.record_decisions() as decisions:
        conv2d_bn_act(x, few, padding=1)
        conv2d_bn_act(x.contiguous(memory_format=torch.channels_last), few, padding=1)
        conv2d_bn_act(x, few, padding=1, training=True, **norm)
        conv2d_bn_act(x, more, padding=1)
        conv2d_bn_act(x, few.detach(), padding=1)
    assert [d.native for d in decisions] == [False, True, True, True, True]
    assert "few channels" in decisions[0].reason


@pytest.mark.parametrize("name", ["running_mean", "running_var", "bn_weight", "bn_bias"])
@pytest.mark.parametrize(
    ("dtype", "allowed"), [(torch.float32, "but input is"), (torch.bfloat16, "it must be that or")]
)
def test_a_normalisation_in_another_dtype_is_named(name, dtype, allowed):
    norm = {n: torch.ones(4, dtype=dtype) for n in ("running_mean", "running_var", "bn_weight", "bn_bias")}
    norm[name] = norm[name].double()
    with pytest.raises(TypeError, match=f"^conv2d_bn_act: {name} is torch.float64.* {allowed}"):
        functional.conv2d_bn_act(torch.zeros(2, 3, 8, 8, dtype=dtype), torch.zeros(4, 3, 3, 3, dtype=dtype), **norm)


def test_groups_may_be_of_numpy():
    input, weight = _cases.randn((2, 4, 5, 5)), _cases.randn((4, 2, 3, 3))
    torch.testing.assert_close(conv2d_bn_act(input, weight, groups=np.int64(2)), torch.conv2d(input, weight, groups=2))


def test_normalisation_needs_a_batch():
    statistics = {"running_mean": torch.zeros(4), "running_var": torch.ones(4)}
    with pytest.raises(ValueError, match="needs a batch"):
        conv2d_bn_act(_cases.randn((4, 5, 5)), _cases.randn((4, 4, 3, 3)), **statistics)

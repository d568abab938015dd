# SPDX-License-Identifier: MIT
from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from genimg_fast import _backend, fuse, unfuse
from genimg_fast.backends import cpu
from genimg_fast.nn import FusedSequential
from genimg_fast.ops._check import ACTIVATIONS
from genimg_fast.ops.conv_transpose2d_bn_act import conv_transpose2d_bn_act
from genimg_fast.reference.conv_transpose2d_bn_act import conv_transpose2d_bn_act as reference
from tests import _cases
from tests._blocks import train_block

# N, Cin, Cout, H, W, kernel, stride, padding, output_padding.  The models' own kernels on sizes around the tile (12 rows
# of 32 channels), one pixel, one channel, and strides beyond the kernel.
GEOMETRIES = [
    (2, 7, 5, 4, 5, 4, 2, 1, 0),
    (5, 16, 33, 1, 1, 4, 1, 0, 0),
    (3, 8, 31, 7, 7, 4, 2, 1, 0),
    (13, 3, 32, 3, 1, 2, 2, 0, 0),
    (2, 1, 40, 5, 3, 3, 2, 1, 1),
    (1, 5, 3, 7, 7, 5, 2, 2, 1),
    (2, 4, 64, 6, 6, 3, 1, 1, 0),
    (2, 4, 9, 3, 3, 1, 3, 0, 2),
    (1, 6, 1, 1, 9, 3, 2, 1, 0),
    (0, 3, 4, 4, 4, 4, 2, 1, 0),
]


# With taps between others that no pixel of a narrow image sees, and enough channels to run tap by tap.
WIDER_THAN_THE_IMAGE = [
    (8, 64, 40, 9, 2, kernel, stride, padding, 0)
    for kernel, stride, padding in ((4, 1, 2), (6, 2, 3), (7, 2, 3), (8, 2, 4), (8, 3, 4), (9, 2, 4), (9, 3, 4))
]


def make_inputs(geometry, dtype=torch.float32):
    n, c_in, c_out, h, w, k, *_ = geometry
    shapes = [(n, c_in, h, w), (c_in, c_out, k, k), (c_out,), (c_out,), (c_out,), (c_out,), (c_out,)]
    input, weight, bias, mean, var, bn_weight, bn_bias = (_cases.randn(s, dtype, i) for i, s in enumerate(shapes))
    # of a network: were sums of the size of their number, all but those near 0 would saturate a tanh
    weight = weight / max(c_in * k * k, 1) ** 0.5
    return input, weight, bias, mean, var.abs() + 0.5, bn_weight, bn_bias


def options(geometry, **more):
    *_, stride, padding, output_padding = geometry
    return {"stride": stride, "padding": padding, "output_padding": output_padding, "negative_slope": 0.2, **more}


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
        actual = run(conv_transpose2d_bn_act, tensors, **kwargs)
    winograd = tensors[1].shape[2] == 4 and kwargs["stride"] == 2 and tensors[1].dtype == torch.float32
    factor = _cases.ERROR_FACTOR_WINOGRAD if winograd else _cases.ERROR_FACTOR
    for i, (a, e, t) in enumerate(zip(actual, exact, torch_result, strict=True)):
        if e is not None:
            _cases.assert_accurate(a, e, t, factor, what=f"result {i}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("geometry", GEOMETRIES + WIDER_THAN_THE_IMAGE)
def test_inference_matches_float64(isa, geometry, layout):
    tensors = make_inputs(geometry)
    kwargs = options(geometry, activation="leaky_relu")
    exact = reference(*(t.double() for t in tensors), **kwargs)
    torch_result = reference(*tensors, **kwargs)
    input = dict(_cases.layouts(tuple(tensors[0].shape)))[layout](tensors[0])
    with _backend.use_backend("native"), torch.no_grad():
        actual = conv_transpose2d_bn_act(input, *tensors[1:], **kwargs)
    _cases.assert_accurate(actual, exact, torch_result)
    channels_last = input.shape[1] > 1 and input.stride(1) == 1 and input.stride(3) == input.shape[1]
    assert actual.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


# Of Toom-Cook (kernel 3 or 4, stride 2, padding 1; kernel 4, stride 2, padding 3; kernel 5, stride 2, any padding; kernel 3 or 4 and
# stride 1): sizes around
# its tiles of 2 and 4, strips that begin inside an image (the tall one), bands of several images, channels around the
# vector widths.  Of narrow: one to four channels, any kernel.  Of unpacked (up to 64 pixels): one pixel, several blocks
# of channels, weights whose rows end inside a vector, a depth that is no multiple of the rows multiplied at once.
VARIANT_GEOMETRIES = [
    (3, 7, 5, 4, 5, 4, 2, 1, 0),
    (2, 17, 33, 7, 9, 4, 2, 1, 0),
    (1, 3, 3, 229, 66, 4, 2, 1, 0),
    (70, 3, 16, 1, 3, 4, 2, 1, 0),
    (1, 20, 70, 8, 8, 4, 2, 1, 0),
    (2, 17, 33, 3, 4, 4, 2, 3, 0),
    (2, 9, 20, 6, 5, 4, 2, 3, 0),
    (1, 3, 16, 70, 34, 4, 2, 3, 0),
    (40, 8, 18, 7, 8, 4, 2, 3, 0),
    (2, 9, 1, 6, 5, 3, 2, 1, 1),
    (1, 16, 4, 5, 20, 5, 1, 2, 0),
    (2, 6, 2, 7, 3, 5, 3, 0, 2),
    (2, 17, 33, 8, 9, 5, 2, 2, 1),
    (2, 8, 5, 9, 10, 5, 2, 2, 0),
    (3, 9, 18, 8, 9, 5, 2, 1, 0),
    (1, 20, 70, 9, 8, 5, 2, 0, 1),
    (1, 8, 7, 11, 10, 5, 2, 3, 1),
    (1, 8, 16, 12, 11, 5, 2, 4, 0),
    (40, 8, 16, 8, 8, 5, 2, 2, 1),
    (2, 33, 17, 7, 9, 3, 2, 1, 0),
    (2, 40, 33, 9, 8, 3, 2, 1, 1),
    (1, 32, 3, 130, 34, 3, 2, 1, 1),
    (40, 32, 8, 4, 5, 3, 2, 1, 0),
    (2, 150, 37, 8, 8, 3, 2, 1, 1),
    (2, 17, 33, 8, 9, 3, 1, 1, 0),
    (1, 20, 70, 9, 8, 3, 1, 0, 0),
    (2, 9, 18, 8, 7, 4, 1, 1, 0),
    (3, 8, 16, 6, 6, 4, 1, 0, 0),
    (2, 40, 70, 1, 1, 4, 2, 1, 0),
    (2, 33, 37, 3, 4, 4, 2, 1, 0),
    (5, 16, 20, 3, 4, 5, 2, 2, 1),
    (1, 9, 70, 8, 8, 3, 1, 1, 0),
    (7, 12, 35, 3, 3, 3, 3, 0, 2),
    (0, 3, 4, 4, 4, 4, 2, 1, 0),
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
            actual = conv_transpose2d_bn_act(*tensors, **kwargs)
        _cases.assert_accurate(actual, exact, torch_result, factor, f"{activation}, training={training}")


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("geometry", [g for g in VARIANT_GEOMETRIES if g[0]])
def test_each_variant_normalises_and_activates_as_it_reads(isa, geometry, variant):
    n, c_in, c_out, h, w, k, stride, padding, output_padding = geometry
    torch.manual_seed(0)
    for activation in (nn.Sigmoid(), nn.LeakyReLU(0.2)):  # a sigmoid makes 0.5 of padding that it should not see
        chain = FusedSequential(
            *(nn.Conv2d(2, c_in, 1), nn.BatchNorm2d(c_in), activation),
            nn.ConvTranspose2d(c_in, c_out, k, stride, padding, output_padding),
        )
        nn.init.normal_(chain[1].bias)
        plain, input = unfuse(copy.deepcopy(chain)), _cases.randn((n, 2, h, w))
        with _backend.use_backend("native"), cpu.force_variant(variant):
            actual = chain(input.requires_grad_())  # with gradients: without them the normalisation is folded away
        torch_result, exact = plain(input), plain.double()(input.double())
        _cases.assert_accurate(actual.detach(), exact.detach(), torch_result.detach(), _cases.ERROR_FACTOR_WINOGRAD)


@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES + VARIANT_GEOMETRIES if g[2] <= 5])
def test_narrow_writes_either_memory_order(isa, geometry):
    input, *rest = make_inputs(geometry)
    with _backend.use_backend("native"), cpu.force_variant("narrow"), torch.no_grad():
        nchw, channels_last = (
            conv_transpose2d_bn_act(
                input.contiguous(memory_format=order), *rest, **options(geometry, activation="tanh")
            )
            for order in (torch.contiguous_format, torch.channels_last)
        )
    assert nchw.is_contiguous()
    assert torch.equal(nchw, channels_last)


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("geometry", [(3, 8, 19, 37, 12, 4, 2, 1, 0), (3, 8, 19, 4, 5, 4, 2, 1, 0)])
def test_statistics_of_each_variant(isa, geometry, variant):
    input, weight, *_ = make_inputs(geometry)
    bias = torch.linspace(-1000, 1000, 19)
    with cpu.force_variant(variant):
        _, raw, mean, var = train_block(True, input, weight, bias)
    channels = raw.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), channels.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), channels.var(1, unbiased=False), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("geometry", [(5, 8, 40, 9, 6, 4, 2, 1, 0), (5, 8, 90, 3, 4, 4, 2, 1, 0)])
def test_each_variant_is_the_same_on_any_number_of_threads(isa, geometry, variant):
    input, weight, *_ = make_inputs(geometry)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with cpu.force_variant(variant):
            results.append(train_block(True, input, weight))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("variant", cpu.VARIANTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_variant_loses_a_nan_or_spreads_it_beyond_its_tile(isa, variant, value):
    geometry = (2, 3, 5, 13, 13, 4, 2, 1, 0)
    input, weight, *_ = make_inputs(geometry)
    clean = reference(input, weight, **options(geometry))
    input[1, 1, 5, 6] = value
    expected = reference(input, weight, **options(geometry))
    with _backend.use_backend("native"), cpu.force_variant(variant), torch.no_grad():
        actual = conv_transpose2d_bn_act(input, weight, **options(geometry, activation="relu"))
    touched = ~expected.isfinite()
    # ReLU makes a plain -inf a finite 0; Toom-Cook's may be NaN.
    assert not actual[touched & ~(expected == -float("inf"))].isfinite().any()
    far = torch.ones_like(touched)
    far[1, :, 7:17, 7:17] = False  # the outputs of the tile of inputs 4 to 7
    torch.testing.assert_close(actual[far], clean.relu()[far], rtol=1e-4, atol=1e-4)


def test_the_cost_rule_prefers_plain_sums_only_if_told(isa):
    input, weight = _cases.randn((8, 64, 16, 16)), _cases.randn((64, 64, 4, 4), seed=1)

    def run_with(allowed):
        before = cpu.allow_winograd
        cpu.allow_winograd = allowed
        try:
            with _backend.use_backend("native"), torch.no_grad():
                return conv_transpose2d_bn_act(input, weight, stride=2, padding=1)
        finally:
            cpu.allow_winograd = before

    def forced(variant):
        with cpu.force_variant(variant), _backend.use_backend("native"), torch.no_grad():
            return conv_transpose2d_bn_act(input, weight, stride=2, padding=1)

    plain = run_with(False)
    assert torch.equal(plain, forced("direct")) or torch.equal(plain, forced("narrow"))
    assert torch.equal(run_with(True), forced("toom_cook_4"))


def test_an_unknown_variant_is_refused():
    with (
        pytest.raises(ValueError, match="variant is 'winograd'; allowed are 'direct', 'toom_cook_2'"),
        cpu.force_variant("winograd"),
    ):
        pass
    with pytest.raises(TypeError, match="allow_winograd must be True or False, got 1"):
        cpu.allow_winograd = 1


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
    bias_grad = run(conv_transpose2d_bn_act, make_inputs(geometry), **options(geometry, training=True))[5]
    torch.testing.assert_close(bias_grad, torch.zeros_like(bias_grad), atol=1e-4, rtol=0)


def test_float64(isa):
    for geometry in GEOMETRIES[:4]:
        assert_parity(make_inputs(geometry, torch.float64), **options(geometry, training=True, activation="tanh"))


def test_statistics_survive_a_mean_far_from_zero(isa):
    geometry = (64, 8, 16, 8, 8, 4, 2, 1, 0)
    input, weight, _, *_ = make_inputs(geometry)
    bias = torch.full((16,), 1000.0)
    exact = reference(input.double(), weight.double(), bias.double(), training=True, **options(geometry))
    torch_result = reference(input, weight, bias, training=True, **options(geometry))
    with _backend.use_backend("native"):
        actual = conv_transpose2d_bn_act(input, weight, bias, training=True, **options(geometry))
    _cases.assert_accurate(actual, exact, torch_result)


@pytest.mark.parametrize("kernel", [(4, 2), (3, 1)])
def test_statistics_survive_an_outlier_that_comes_first(isa, kernel):
    input, weight, *_ = make_inputs(geometry := (16, 16, 32, 32, 32, *kernel, 1, 0))
    input[0, :, :2, :2] *= 1000
    exact = torch.nn.functional.conv_transpose2d(input.double(), weight.double(), None, kernel[1], 1)
    exact_var, exact_mean = torch.var_mean(exact, (0, 2, 3))
    mean, var = torch.zeros(32), torch.ones(32)
    with _backend.use_backend("native"):
        conv_transpose2d_bn_act(input, weight, None, mean, var, training=True, momentum=1.0, **options(geometry))
    torch.testing.assert_close(mean.double(), exact_mean, rtol=0, atol=1e-6 * exact_var.max().sqrt().item())
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=0)


def test_nan_and_inf_travel(isa):
    geometry = GEOMETRIES[2]
    tensors = make_inputs(geometry)
    tensors[0][0, 0, 2, 3], tensors[0][1, 1, 0, 0] = float("nan"), float("inf")
    with _backend.use_backend("native"), cpu.force_variant("direct"), torch.no_grad():
        actual = conv_transpose2d_bn_act(*tensors, **options(geometry, activation="relu"))
    torch.testing.assert_close(actual, reference(*tensors, **options(geometry, activation="relu")), equal_nan=True)


def test_result_does_not_depend_on_the_number_of_threads(isa):
    geometry = GEOMETRIES[2]
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with _backend.use_backend("native"):
            results.append(run(conv_transpose2d_bn_act, make_inputs(geometry), **options(geometry, training=True))[:3])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"groups": 3}, "groups=3"), ({"dilation": 2}, "dilation"), ({"negative_slope": -0.5}, "negative_slope")],
)
def test_what_the_kernel_cannot_do_is_correct_and_explained(more, reason):
    input, weight = _cases.randn((2, 6, 4, 4)), _cases.randn((6, 4, 4, 4), seed=1)
    kwargs = {"stride": 2, "padding": 1, "training": True, "activation": "leaky_relu", **more}
    with _backend.record_decisions() as decisions:
        actual = conv_transpose2d_bn_act(input, weight, **kwargs)
    torch.testing.assert_close(actual, reference(input, weight, **kwargs))
    assert reason in decisions[0].reason
    assert decisions[1].op == "batch_norm_act"
    with _backend.use_backend("native"), pytest.raises(RuntimeError, match=reason):
        conv_transpose2d_bn_act(input, weight, **kwargs)


@pytest.mark.parametrize(("c_in", "c_out"), [(0, 4), (6, 0)])
def test_a_weight_without_elements_is_left_to_pytorch(c_in, c_out):
    input, weight = torch.ones(2, c_in, 8, 8), torch.ones(c_in, c_out, 4, 4)
    with _backend.record_decisions() as decisions, contextlib.suppress(RuntimeError):  # PyTorch refuses most of them
        conv_transpose2d_bn_act(input, weight, stride=2, padding=1)
    assert [d.reason for d in decisions] == ["a weight without elements"]
    layer = nn.ConvTranspose2d(6, 4, 4, 2, 1)
    layer.weight, layer.bias = nn.Parameter(weight), None
    fuse(layer)
    with _backend.use_backend("native"), pytest.raises(RuntimeError, match="a weight without elements"):
        layer(input)


def test_an_output_without_pixels_is_pytorchs():
    input, weight = torch.ones(2, 3, 1, 2), torch.ones(3, 4, 2, 2)
    assert conv_transpose2d_bn_act(input, weight, padding=1).shape == (2, 4, 0, 1)
    with _backend.use_backend("native"), pytest.raises(RuntimeError, match="no output: padding cuts it off"):
        conv_transpose2d_bn_act(input, weight, padding=1)
    layer = nn.ConvTranspose2d(3, 4, 2, padding=1)
    fuse(layer)
    assert layer(input).shape == (2, 4, 0, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"input": torch.zeros(2, 5, 4, 4)},
            ValueError,
            r"input has 5 channels but weight of shape \(6, 4, 4, 4\) takes 6",
        ),
        ({"input": torch.zeros(6)}, ValueError, r"input must be \(N, C, H, W\) or \(C, H, W\), got shape \(6,\)"),
        ({"weight": torch.zeros(6, 4, 4)}, ValueError, r"weight must have 4 dimensions, got shape \(6, 4, 4\)"),
        ({"weight": torch.zeros(6, 4, 4, 4).double()}, TypeError, "weight is torch.float64 but input is torch.float32"),
        (
            {"bias": torch.zeros(5)},
            ValueError,
            r"bias must have shape \(4,\) \(one value an output channel\), got \(5,\)",
        ),
        ({"running_mean": torch.zeros(4)}, ValueError, "running_mean and running_var must be given together"),
        (
            {
                "input": torch.zeros(1, 6, 1, 1),
                "weight": torch.zeros(6, 4, 1, 1),
                "training": True,
                "padding": 0,
                "stride": 1,
            },
            ValueError,
            r"Expected more than 1 value per channel when training, got output size \(1, 4, 1, 1\)",
        ),
        ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
        ({"activation": "gelu"}, ValueError, "activation must be one of 'none', 'relu', .* got 'gelu'"),
        ({"stride": 0}, ValueError, "stride must be one or two integers >= 1, got 0"),
        ({"stride": 2.0}, ValueError, "stride must be one or two integers >= 1, got 2.0"),
        ({"padding": (1, 1, 1)}, ValueError, r"padding must be one or two integers >= 0, got \(1, 1, 1\)"),
        ({"training": True, "eps": 0.0}, ValueError, "_bn_act: eps must be > 0 when training, got 0.0"),
        ({"training": True, "momentum": None}, TypeError, "_bn_act: momentum must be a number, got NoneType"),
        ({"negative_slope": "0.2"}, TypeError, "_bn_act: negative_slope must be a number, got str"),
        ({"output_padding": 2}, ValueError, r"output_padding \(2, 2\) must be smaller than stride \(2, 2\)"),
    ],
)
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, change, error, message):
    arguments = {
        "input": torch.zeros(2, 6, 4, 4),
        "weight": torch.zeros(6, 4, 4, 4),
        "stride": 2,
        "padding": 1,
        **change,
    }
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        conv_transpose2d_bn_act(**arguments)

# SPDX-License-Identifier: MIT
from __future__ import annotations

import sys

import pytest
import torch

from genimg_fast import _backend
from genimg_fast.functional import batch_norm_act
from genimg_fast.ops import batch_norm_act as batch_norm_act_op
from genimg_fast.ops._check import ACTIVATIONS
from genimg_fast.reference import batch_norm_act as reference
from tests import _cases

MODULE = sys.modules[batch_norm_act_op.__module__]
WORTH_A_KERNEL = MODULE._WORTH_A_KERNEL
SLOPE = 0.2
# Channel counts and plane sizes around 1, the vector widths (4, 8, 16) and the folding of partial sums.
SHAPES = [
    (6, 1),
    (7, 3),
    (2, 15),
    (65, 17),
    (3, 4, 5),
    (5, 1, 7),
    (3, 5, 1, 1),
    (2, 7, 3, 3),
    (4, 16, 4, 4),
    (2, 3, 17, 31),
]
LARGE_SHAPES = [(300, 129), (9, 2, 61, 70), (2, 3, 4, 5, 6)]
EMPTY_SHAPES = [(0, 3), (0, 3, 2, 2), (2, 3, 0)]


@pytest.fixture(autouse=True)
def _kernels_for_small_inputs(monkeypatch):
    """Where these tests leave the choice to "auto", they mean the kernels."""
    monkeypatch.setattr(MODULE, "_WORTH_A_KERNEL", 0)
    monkeypatch.setattr(MODULE, "_WORTH_A_KERNEL_IN_INFERENCE", 0)


def parameters(channels, dtype, seed=10):
    """Running mean, running variance, weight and bias, away from their defaults."""
    values = [_cases.randn((channels,), dtype, seed + i) for i in range(4)]
    return values[0], values[1].square() + 0.5, values[2] + 0.5, values[3]


def run(function, input, params, training, activation):
    """Output, gradients under an upstream gradient that is not 1, and the running statistics afterwards."""
    running_mean, running_var, weight, bias = (p.clone() for p in params)
    leaves = [input.clone().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    out = function(
        leaves[0],
        running_mean,
        running_var,
        *leaves[1:],
        training=training,
        activation=activation,
        negative_slope=SLOPE,
    )
    # Away from 0, so that its sum is no difference of large numbers, whose error no fixed tolerance fits.
    upstream = (_cases.randn(tuple(out.shape), torch.float64, 5) + 2).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream), running_mean, running_var]


def assert_matches(input, params, training, activation, what):
    with _backend.use_backend("native"):
        actual = run(batch_norm_act, input, params, training, activation)
    dense = input.contiguous()
    exact = run(reference.batch_norm_act, dense.double(), [p.double() for p in params], training, activation)
    torch_result = run(reference.batch_norm_act, dense, params, training, activation)
    for a, e, t in zip(actual, exact, torch_result, strict=True):
        _cases.assert_accurate(a, e, t, what=what)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES + LARGE_SHAPES)
def test_matches_float64_in_every_layout(isa, shape, training):
    values, params = _cases.randn(shape, seed=1), parameters(shape[1], torch.float32)
    for name, layout in _cases.layouts(shape):
        assert_matches(layout(values), params, training, "tanh", name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float64(isa, activation, training):
    for shape in [(65, 17), (3, 4, 5), (4, 3, 17, 31)]:
        x, params = _cases.randn(shape, torch.float64, 1), parameters(shape[1], torch.float64)
        with _backend.use_backend("native"):
            actual = run(batch_norm_act, x, params, training, activation)
        expected = run(reference.batch_norm_act, x, params, training, activation)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_auto_leaves_planes_that_do_not_fill_a_vector_to_torch():
    x = _cases.randn((4, 3, 3, 3))
    with _backend.record_decisions() as decisions:
        batch_norm_act(x, None, None, training=True)
        batch_norm_act(x.contiguous(memory_format=torch.channels_last), None, None, training=True)
        batch_norm_act(_cases.randn((4, 3, 4, 4)), None, None, training=True)
    assert [d.native for d in decisions] == [False, True, True]
    assert "fewer than 16 elements" in decisions[0].reason


@pytest.mark.parametrize("requires_grad", [False, True])
def test_auto_leaves_small_inputs_to_torch(monkeypatch, requires_grad):
    monkeypatch.setattr(MODULE, "_WORTH_A_KERNEL", WORTH_A_KERNEL)
    small, large = (torch.ones(rows, 512, requires_grad=requires_grad) for rows in (256, 512))
    with _backend.record_decisions() as decisions:
        batch_norm_act(small, None, None, training=True)
        batch_norm_act(large, None, None, training=True)
    assert [d.native for d in decisions] == [False, True]
    assert "fewer than 196608 elements" in decisions[0].reason


def test_auto_leaves_a_fixed_scale_and_shift_to_torch():
    x, (mean, var, weight, bias) = _cases.randn((4, 3, 8, 8)), parameters(3, torch.float32)
    with _backend.record_decisions() as decisions:
        batch_norm_act(x, mean, var, weight, bias)
        batch_norm_act(x, mean, var, weight, bias, activation="relu")
        batch_norm_act(x, mean, var, weight, bias, training=True)
    assert [d.native for d in decisions] == [False, True, True]
    assert decisions[0].reason == "a fixed scale and shift alone, which is one pass in PyTorch too"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_matches_float64_with_every_activation(isa, activation, training):
    for shape in [(33, 5), (4, 3, 5, 5)]:
        values = _cases.randn(shape, seed=1)
        assert_matches(values, parameters(shape[1], torch.float32), training, activation, activation)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradient_keep_the_layout(layout):
    x = _cases.randn((4, 6, 5, 5)).contiguous(memory_format=layout).requires_grad_()
    out = batch_norm_act(x, None, None, training=True)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert out.is_contiguous(memory_format=layout)
    assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mean_far_larger_than_the_deviation_costs_no_digits(isa, layout):
    x = (_cases.randn((16, 5, 16, 16), torch.float64, 1) + 1e4).float().contiguous(memory_format=layout)
    x[0, 0, 0, 0] = 0  # an outlier where a shift would be taken from
    _, mean, var = torch.ops.genimg_fast.batch_norm_act_training(x, None, None, 1e-5, 0, 0.0)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=2e-7, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float64_keeps_its_digits_where_an_outlier_comes_first(isa, layout):
    x = _cases.randn((16, 5, 64, 64), torch.float64, 1)
    x[0, :3, 0, 0] = torch.tensor([1e3, 1e6, -1e9], dtype=torch.float64)
    x = x.contiguous(memory_format=layout)
    _, mean, var = torch.ops.genimg_fast.batch_norm_act_training(x, None, None, 1e-5, 0, 0.0)
    exact_var, exact_mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, exact_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(var, exact_var, rtol=1e-12, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_running_statistics_are_not_differentiable_as_in_torch(backend, training):
    running_mean, running_var, *_ = parameters(3, torch.float32)
    with _backend.use_backend(backend), pytest.raises(RuntimeError, match="running_mean"):
        batch_norm_act(torch.randn(4, 3, 5), running_mean.requires_grad_(), running_var, training=training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "sigmoid"])
def test_nan_and_inf_travel(isa, activation, training):
    for value in (float("nan"), float("inf"), float("-inf")):
        for position in (0, 7):  # 0: where the statistics take their shift from
            x = _cases.randn((8, 3), seed=1)
            x[position, 1] = value
            params = parameters(3, torch.float32)
            actual = run(batch_norm_act, x, params, training, activation)
            expected = run(reference.batch_norm_act, x, params, training, activation)
            forward_and_statistics = [0, 4, 5]
            for i in forward_and_statistics:
                torch.testing.assert_close(actual[i], expected[i], equal_nan=True)
            others = [0, 2]  # a channel does not infect another
            torch.testing.assert_close(actual[1][:, others], expected[1][:, others])


@pytest.mark.parametrize("shape", EMPTY_SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_empty_input(shape, training):
    params = parameters(shape[1], torch.float32)
    actual = run(batch_norm_act, torch.zeros(shape), params, training, "relu")
    expected = run(reference.batch_norm_act, torch.zeros(shape), params, training, "relu")
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("shape", [(3000, 33), (9, 5, 41, 43)])
def test_result_does_not_depend_on_the_number_of_threads(isa, shape):
    x, params = _cases.randn(shape, seed=1), parameters(shape[1], torch.float32)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(run(batch_norm_act, x, params, True, "leaky_relu"))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_running_statistics_follow_torch_and_keep_their_version():
    ours, theirs = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    for step in range(3):
        x = 2 * _cases.randn((4, 3, 5, 5), seed=step) + 1
        version = ours.running_mean._version
        batch_norm_act(x, ours.running_mean, ours.running_var, training=True, momentum=0.3)
        torch.nn.functional.batch_norm(x, theirs.running_mean, theirs.running_var, training=True, momentum=0.3)
        assert ours.running_mean._version == version  # PyTorch's own backward wants it so
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_running_statistics_of_half_types_are_rounded_once(dtype, momentum):
    mean, var = (_cases.randn((1000,), torch.float32, seed).abs() for seed in (1, 2))
    running = [_cases.randn((1000,), dtype, seed).abs() for seed in (3, 4)]
    exact = [
        momentum * batch.double() * scale + (1 - momentum) * value.double()
        for batch, value, scale in zip((mean, var), running, (1, 8 / 7), strict=True)
    ]
    MODULE.update_running_statistics(*running, mean, var, 8, momentum)
    for value, expected in zip(running, exact, strict=True):
        assert value.dtype == dtype
        half_a_step = torch.finfo(dtype).eps / 2 * 1.001  # float32's own roundings
        assert ((value.double() - expected).abs() <= half_a_step * expected.abs() + 1e-7).all()


def test_running_statistics_update_under_compile():
    torch._dynamo.reset()
    x, (running_mean, running_var, *_) = _cases.randn((4, 3, 5, 5)), parameters(3, torch.float32)
    expected = run(batch_norm_act, x, (running_mean, running_var, torch.ones(3), torch.zeros(3)), True, "relu")
    compiled = torch.compile(batch_norm_act, fullgraph=True, backend="aot_eager")
    compiled(x, running_mean, running_var, training=True)
    torch.testing.assert_close([running_mean, running_var], expected[-2:])


def test_keeps_only_the_input_for_backward():
    saved = []
    x = _cases.randn((4, 3, 5, 5)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        batch_norm_act(x, None, None, torch.ones(3), torch.zeros(3), training=True, activation="tanh")
    assert [t.data_ptr() for t in saved if t.numel() > 3] == [x.data_ptr()]


def test_opcheck():
    x, (mean, var, weight, bias) = _cases.randn((4, 3, 5, 5), seed=1), parameters(3, torch.float32)
    sliced = _cases.randn((4, 5, 5, 6), seed=1).permute(0, 3, 1, 2)[:, ::2]
    ops = torch.ops.genimg_fast
    for input in (x, x.contiguous(memory_format=torch.channels_last), sliced):
        leaf = input.clone().requires_grad_() if input is not sliced else input
        for w, b in ((weight.clone().requires_grad_(), bias.clone().requires_grad_()), (None, None)):
            torch.library.opcheck(ops.batch_norm_act_training.default, (leaf, w, b, 1e-5, 1, 0.01))
            torch.library.opcheck(ops.batch_norm_act_inference.default, (leaf, mean, var, w, b, 1e-5, 3, 0.01))
        for training in (True, False):
            args = (torch.ones_like(input), input, mean, var, weight, None, 1e-5, 2, 0.01, training)
            torch.library.opcheck(ops.batch_norm_act_backward.default, args)


def test_autocast_keeps_the_dtype_of_the_input():
    x = _cases.randn((4, 3, 5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert batch_norm_act(x, None, None, training=True).dtype == torch.float32
        half = batch_norm_act(x.bfloat16(), None, None, torch.ones(3), torch.zeros(3), training=True)
    assert half.dtype == torch.bfloat16


CHANNELS = torch.ones(3)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((torch.zeros(3), None, None), {"training": True}, ValueError, r"input must be \(N, C, ...\), got shape \(3,\)"),
        ((torch.zeros(2, 4), CHANNELS, CHANNELS), {}, ValueError, r"running_mean must have shape \(4,\)"),
        ((torch.zeros(2, 3), CHANNELS, None), {}, ValueError, "given together or not at all"),
        ((torch.zeros(2, 3), None, None), {}, ValueError, "must be given when not training"),
        ((torch.zeros(1, 3, 1, 1), None, None), {"training": True}, ValueError, "Expected more than 1 value per channel"),
        ((torch.zeros(2, 3), CHANNELS.double(), CHANNELS), {}, TypeError, "running_mean is torch.float64 but input is"),
        ((torch.zeros(2, 3).half(), CHANNELS.double(), CHANNELS), {}, TypeError, "it must be that or float32"),
        ((torch.zeros(2, 3).long(), CHANNELS, CHANNELS), {}, TypeError, "input must be floating point, got torch.int64"),
        ((torch.zeros(2, 3), CHANNELS, CHANNELS), {"eps": -1.0}, ValueError, "eps must be >= 0, got -1.0"),
        ((torch.zeros(2, 3), None, None), {"eps": 0.0, "training": True}, ValueError, "eps must be > 0 when training"),
        ((torch.zeros(2, 3), CHANNELS, CHANNELS), {"activation": "gelu"}, ValueError, "activation must be one of 'none'"),
        ((torch.zeros(2, 3), CHANNELS, CHANNELS), {"momentum": None}, TypeError, "momentum must be a number, got NoneType"),
        ((torch.zeros(2, 3), CHANNELS, CHANNELS), {"training": 1}, TypeError, "training must be True or False, got int"),
        ((torch.zeros(2, 3), CHANNELS, CHANNELS), {"negative_slope": "0"}, TypeError, "negative_slope must be a number, got"),
        ((torch.zeros(2, 3), CHANNELS, CHANNELS.to("meta")), {}, ValueError, "running_var is on meta but input is on cpu"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, args, kwargs, error, message):
    with _backend.use_backend(backend), pytest.raises(error, match=message) as caught:
        batch_norm_act(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_names_a_wrong_bias(backend):
    input, ones = _cases.randn((2, 4, 5, 5)), torch.ones(4)
    with _backend.use_backend(backend):
        with pytest.raises(ValueError, match="bias must have shape"):
            batch_norm_act(input, ones, ones, ones, torch.ones(1))
        with pytest.raises(TypeError, match="bias"):
            batch_norm_act(input, ones, ones, ones, torch.ones(4, dtype=torch.float64))

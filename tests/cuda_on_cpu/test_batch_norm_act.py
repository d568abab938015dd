# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import (
    CHANNEL_DTYPES,
    DTYPES,
    EPSILON,
    ROUNDINGS,
    assert_accurate,
    channel_vectors,
    decode,
    encode,
)

pytestmark = pytest.mark.usefixtures("schedule")

# (outer, channels, inner).  Planes: odd, around a pack (4 or 8), many planes a thread, several blocks a channel.
PLANES = [(3, 2, 9), (2, 3, 8), (70, 1, 16), (2, 2, 2056)]
# Rows: odd, around a pack, a full warp of packs, many rows, several tiles of channels and several blocks a channel.
ROWS = [(7, 3, 1), (40, 16, 1), (9, 264, 1), (1030, 8, 1)]
EPS, SLOPE = 1e-3, 0.25
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")


def random(size, seed):
    return np.random.default_rng(seed).standard_normal(size)


def activate(activation, x):
    if activation in ("relu", "leaky_relu"):
        slope = 0 if activation == "relu" else SLOPE
        return np.where(x > 0, x, slope * x), np.where(x > 0, 1, slope)
    if activation == "tanh":
        return np.tanh(x), 1 - np.tanh(x) ** 2
    if activation == "sigmoid":
        y = 1 / (1 + np.exp(-x))
        return y, y * (1 - y)
    return x, np.ones_like(x)


def channel(values):
    return values[:, None].astype(np.float64)


def scratch(kernels, memory, dtype, layout):
    return memory.output(kernels.batch_norm_scratch(dtype, *layout), np.float32)


def parameters(memory, channels, dtypes=("float32",)):
    """mean, var, weight and bias as the kernels take them, and what they read."""
    values = random((4, channels), 2)
    values[1] = values[1] ** 2 + 0.5
    arrays, exact = channel_vectors(memory, values, dtypes)
    return arrays, [value[:, None] for value in exact]


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", PLANES + ROWS, ids=str)
def test_statistics(kernels, memory, layout, dtype, misaligned):
    x = memory.input(10 + random(layout, 1), dtype, misaligned)
    mean, var = memory.output(layout[1], np.float32), memory.output(layout[1], np.float32)
    kernels.batch_norm_statistics(dtype, x, *layout, scratch(kernels, memory, dtype, layout), mean, var)
    assert_accurate(mean, decode(x, dtype).mean(axis=(0, 2)), "float32")
    # The running mean is rounded to float32 at every step: 10 deviations cost a digit.
    np.testing.assert_allclose(var, decode(x, dtype).var(axis=(0, 2)), rtol=3e-6)


@pytest.mark.parametrize("layout", [(262401, 1, 1), (1, 1, 262401)], ids=str)
def test_more_blocks_at_once_than_splits_are_merged(kernels, memory, layout):
    """A GPU of 132 multiprocessors has room for 1,056."""
    x = memory.input(10 + random(layout, 1), "float16")
    mean, var = memory.output(layout[1], np.float32), memory.output(layout[1], np.float32)
    kernels.set_resident_blocks(1056)
    try:
        kernels.batch_norm_statistics("float16", x, *layout, scratch(kernels, memory, "float16", layout), mean, var)
    finally:
        kernels.set_resident_blocks(8)
    assert_accurate(mean, decode(x, "float16").mean(axis=(0, 2)), "float32")
    np.testing.assert_allclose(var, decode(x, "float16").var(axis=(0, 2)), rtol=3e-6)


@pytest.mark.parametrize("layout", [(40, 2, 64), (2560, 2, 1)], ids=str)
def test_variance_survives_a_mean_far_larger_than_the_deviation(kernels, memory, layout):
    x = memory.input(1e4 + random(layout, 1), "float32")
    mean, var = memory.output(layout[1], np.float32), memory.output(layout[1], np.float32)
    kernels.batch_norm_statistics("float32", x, *layout, scratch(kernels, memory, "float32", layout), mean, var)
    # As above, four digits of seven; a sum of squares would have none left.
    np.testing.assert_allclose(var, x.astype(np.float64).var(axis=(0, 2)), rtol=1e-3)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float16", "bfloat16"), ("bfloat16", "float32")], ids=str)
def test_running_statistics(kernels, memory, dtypes):
    """Of partial sums that are merged: 6 splits of 5 values, in each of 3 channels."""
    values = random((6, 5, 3), 1) + 2
    scratch = memory.output(kernels.batch_norm_merge_scratch(6, 3), np.float32)
    scratch[: 6 * 3 * 3] = np.stack([np.full((6, 3), 5), values.mean(1), 5 * values.var(1)], axis=-1).ravel()
    mean, var = memory.output(3, np.float32), memory.output(3, np.float32)
    running, before = [], []
    for dtype, seed in zip(dtypes, (2, 3), strict=True):
        running.append(memory.output(3, dtype))
        running[-1][:] = encode(random(3, seed), dtype)
        before.append(decode(running[-1], dtype))
    kernels.batch_norm_running_statistics(scratch, 6, 3, mean, var, *running, 0.25)
    np.testing.assert_allclose(var, values.var((0, 1)), rtol=1e-6)
    batch = values.mean((0, 1)), values.var((0, 1), ddof=1)
    for moved, dtype, old, new in zip(running, dtypes, before, batch, strict=True):
        assert_accurate(moved, 0.75 * old + 0.25 * new, dtype)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float16", "bfloat16")], ids=str)
@pytest.mark.parametrize("channels", [0, 1, 3, 300])
def test_running_statistics_of_given_ones(kernels, memory, channels, dtypes):
    mean, var = (memory.input(random(channels, seed), "float32") for seed in (1, 2))
    moved, before = [], []
    for dtype, seed in zip(dtypes, (3, 4), strict=True):
        moved.append(memory.output(channels, dtype))
        moved[-1][:] = encode(random(channels, seed), dtype)
        before.append(decode(moved[-1], dtype))
    kernels.batch_norm_move_statistics(mean, var, channels, 1.25, *moved, 0.3)
    for actual, dtype, old, new in zip(moved, dtypes, before, (mean, 1.25 * var), strict=True):
        assert_accurate(actual, 0.7 * old + 0.3 * new, dtype)


@pytest.mark.parametrize("layout", [(40, 2, 64), (2560, 2, 1)], ids=str)
def test_variance_of_a_constant_whose_square_is_beyond_float32(kernels, memory, layout):
    x = memory.input(np.full(layout, 2.0**100), "float32")
    mean, var = memory.output(layout[1], np.float32), memory.output(layout[1], np.float32)
    kernels.batch_norm_statistics("float32", x, *layout, scratch(kernels, memory, "float32", layout), mean, var)
    np.testing.assert_array_equal((mean, var), [[2.0**100] * layout[1], [0.0] * layout[1]])


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", PLANES + ROWS, ids=str)
def test_forward(kernels, memory, layout, dtype, misaligned):
    x, (params, exact) = memory.input(random(layout, 1), dtype, misaligned), parameters(memory, layout[1])
    mean, var, weight, bias = exact
    normalized = (decode(x, dtype) - mean) / np.sqrt(var + EPS)
    for code, activation in enumerate(ACTIVATIONS):
        out = memory.output(layout, dtype, misaligned)
        kernels.batch_norm_act(dtype, x, *layout, *params, EPS, code, SLOPE, out)
        assert_accurate(out, activate(activation, normalized * weight + bias)[0], dtype, activation)
    out = memory.output(layout, dtype, misaligned)
    kernels.batch_norm_act(dtype, x, *layout, *params[:2], None, None, EPS, 0, SLOPE, out)
    assert_accurate(out, normalized, dtype)


@pytest.mark.parametrize("channel_dtypes", CHANNEL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", [PLANES[1], ROWS[1]], ids=str)
def test_parameters_of_any_dtype(kernels, memory, layout, channel_dtypes):
    x = memory.input(random(layout, 1), "float32")
    params, (mean, var, weight, bias) = parameters(memory, layout[1], channel_dtypes)
    out = memory.output(layout, "float32")
    kernels.batch_norm_act("float32", x, *layout, *params, EPS, 0, SLOPE, out)
    assert_accurate(out, (decode(x, "float32") - mean) / np.sqrt(var + EPS) * weight + bias, "float32")


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", PLANES + ROWS, ids=str)
def test_backward(kernels, memory, layout, dtype, misaligned):
    training = dtype != "float16"
    x, grad = memory.input(random(layout, 1), dtype, misaligned), memory.input(2 + random(layout, 3), dtype, misaligned)
    params, (mean, var, weight, bias) = parameters(memory, layout[1], CHANNEL_DTYPES[layout[0] % 4])
    code = layout[0] % len(ACTIVATIONS)
    grad_input = memory.output(layout, dtype, misaligned)
    of_parameters = [DTYPES[layout[0] % 3], DTYPES[layout[1] % 3]]
    grad_parameters = [memory.output(layout[1], of_parameter) for of_parameter in of_parameters]
    kernels.batch_norm_act_backward(
        dtype, grad, x, *layout, *params, EPS, code, SLOPE, training, scratch(kernels, memory, dtype, layout),
        grad_input, *grad_parameters,
    )  # fmt: skip

    inverse_std = 1 / np.sqrt(var + EPS)
    normalized = (decode(x, dtype) - mean) * inverse_std
    dy = decode(grad, dtype) * activate(ACTIVATIONS[code], normalized * weight + bias)[1]
    exact_weight, exact_bias = (dy * normalized).sum(axis=(0, 2)), dy.sum(axis=(0, 2))
    correction = (channel(exact_bias) + normalized * channel(exact_weight)) / (layout[0] * layout[2]) * training
    exact_input = (dy - correction) * inverse_std * weight
    # Terms cancel, in the activation's derivative, the sums and the correction: what is added up bounds the error.
    terms = np.abs(decode(grad, dtype))
    bounds = 1e-6 * (terms * np.abs(normalized)).sum(), 1e-6 * terms.sum()
    for actual, kind, exact, bound in zip(
        grad_parameters, of_parameters, (exact_weight, exact_bias), bounds, strict=True
    ):
        rounding = EPSILON[kind] / 2 * (kind != "float32")
        np.testing.assert_allclose(decode(actual, kind), exact, rtol=rounding, atol=bound)
    input_bound = (
        ROUNDINGS[dtype] * EPSILON[dtype] * ((terms + np.abs(correction)) * np.abs(inverse_std * weight)).max()
    )
    np.testing.assert_allclose(decode(grad_input, dtype), exact_input, rtol=0, atol=input_bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [(70, 1, 16), (9, 264, 1)], ids=str)
def test_stages_of_backward_with_sums_over_more_values_than_these(kernels, memory, layout, dtype):
    """Half of a batch, in memory one half after the other, as a process sees it."""
    outer, channels, inner = layout
    whole = (2 * outer, channels, inner)
    x, grad, params = (
        memory.input(random(whole, 1), dtype),
        memory.input(2 + random(whole, 3), dtype),
        parameters(memory, channels, CHANNEL_DTYPES[-1])[0],
    )
    halves = [
        (memory.input(decode(x, dtype)[h], dtype), memory.input(decode(grad, dtype)[h], dtype))
        for h in (slice(outer), slice(outer, None))
    ]
    norm = (*params, EPS, 2, SLOPE)
    expected, sums = memory.output(whole, dtype), [memory.output(channels, np.float32) for _ in range(2)]
    kernels.batch_norm_act_backward(
        dtype, grad, x, *whole, *norm, True, scratch(kernels, memory, dtype, whole), expected, *sums
    )
    shares = []
    for half, grad_half in halves:
        shares.append([memory.output(channels, np.float32) for _ in range(2)])
        kernels.batch_norm_gradient_sums(
            dtype, grad_half, half, *layout, *norm, scratch(kernels, memory, dtype, layout), *shares[-1]
        )
    joined = [memory.input(a + b, np.float32) for a, b in zip(*shares, strict=True)]
    for actual, exact in zip(joined, sums, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-6 * 4 * outer * inner)
    for i, (half, grad_half) in enumerate(halves):
        actual = memory.output(layout, dtype)
        kernels.batch_norm_gradient_input(dtype, grad_half, half, *layout, *norm, *joined, 2 * outer * inner, actual)
        exact = decode(expected, dtype)[i * outer : (i + 1) * outer]
        bound = ROUNDINGS[dtype] * EPSILON[dtype] * np.abs(exact).max()
        np.testing.assert_allclose(decode(actual, dtype), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("layout", [(0, 3, 1), (4, 0, 1)], ids=str)
def test_empty(kernels, memory, layout):
    x, (params, _) = memory.input(np.zeros(layout), "float32"), parameters(memory, layout[1])
    out, grad_weight, grad_bias = (memory.output(s, np.float32) for s in (layout, layout[1], layout[1]))
    buffer = scratch(kernels, memory, "float32", layout)
    kernels.batch_norm_statistics("float32", x, *layout, buffer, grad_weight, grad_bias)
    kernels.batch_norm_act("float32", x, *layout, *params, EPS, 1, SLOPE, out)
    kernels.batch_norm_act_backward(
        "float32", x, x, *layout, *params, EPS, 1, SLOPE, True, buffer, out, grad_weight, grad_bias
    )
    assert not grad_weight.any()
    assert not grad_bias.any()


@pytest.mark.parametrize("layout", [(6, 3, 8), (48, 3, 1)], ids=str)
def test_nan_stays_in_its_channel(kernels, memory, layout):
    values = random(layout, 1)
    values[2, 1, 0] = np.nan
    x = memory.input(values, "float32")
    mean, var = memory.output(3, np.float32), memory.output(3, np.float32)
    kernels.batch_norm_statistics("float32", x, *layout, scratch(kernels, memory, "float32", layout), mean, var)
    np.testing.assert_array_equal(np.isnan(mean), [False, True, False])
    np.testing.assert_array_equal(np.isnan(var), [False, True, False])

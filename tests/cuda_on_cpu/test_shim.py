# SPDX-License-Identifier: MIT
"""The shim itself: it runs correct kernels (controls.cu) as CUDA would, and shows the bugs of incorrect ones."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, decode, encode

THREADS = 128


def run_exchange(kernels, memory, name, correct, threads=THREADS):
    """One of the kernels that pass values between threads: (result, what it ought to be)."""
    x = memory.input(np.arange(1, threads + 1), np.float32)
    out = memory.output(1 if name == "tree_sum" else threads, np.float32)
    getattr(kernels, name)(x, out, threads, correct)
    expected = {"tree_sum": x.sum(keepdims=True), "swap_pairs": x.reshape(-1, 2)[:, ::-1].ravel()}
    return out, expected.get(name, np.roll(x, -32))


@pytest.mark.parametrize("name", ["tree_sum", "swap_pairs", "rotate_warps"])
def test_correct_exchange_is_right(kernels, memory, schedule, name):
    np.testing.assert_array_equal(*run_exchange(kernels, memory, name, correct=True))


@pytest.mark.parametrize("name", ["swap_pairs", "rotate_warps"])
def test_dropped_barrier_shows_under_every_schedule(kernels, memory, schedule, name):
    """In rotate_warps, behind a warp barrier: it shows because a warp may run far ahead of the next."""
    out, expected = run_exchange(kernels, memory, name, correct=False)
    assert not np.array_equal(out, expected)


def test_dropped_barrier_of_a_reduction_shows_under_some_schedule(kernels, memory):
    """Not under all: from the last thread to the first is an order in which a tree sum needs no barrier."""
    shows = set()
    for schedule in ("forward", "reverse", "random"):
        kernels.set_schedule(schedule, 1)
        out, expected = run_exchange(kernels, memory, "tree_sum", correct=False)
        if not np.array_equal(out, expected):
            shows.add(schedule)
    kernels.set_schedule("forward", 0)
    assert shows == {"forward", "random"}


@pytest.mark.parametrize(
    ("divergence", "message"),
    [
        (0, r"64 threads at __syncthreads \(controls.cu:\d+\), 64 threads returned"),
        (1, r"64 threads at __syncthreads \(controls.cu:\d+\), 64 threads returned; block \(0,0,0\) of 128 threads"),
        (2, r"meets at different places: 64 threads at __syncthreads .*, 64 threads at __syncthreads"),
        (3, r"124 threads at __shfl_xor_sync \(controls.cu:\d+\), 4 threads returned"),
        (4, r"a lane is not in its own mask: 1 thread at __syncwarp"),
        (5, r"64 threads at __shfl_xor_sync .*, 64 threads at __syncwarp"),
    ],
    ids=["half_the_block", "early_return", "two_places", "missing_lane", "not_in_own_mask", "mixed"],
)
def test_divergent_barrier_raises(kernels, schedule, divergence, message):
    with pytest.raises(RuntimeError, match=message):
        kernels.diverge(divergence, THREADS)


def test_launches_after_a_failed_one_are_sound(kernels, memory):
    with pytest.raises(RuntimeError, match="divergent barrier"):
        kernels.diverge(1, THREADS)
    np.testing.assert_array_equal(*run_exchange(kernels, memory, "tree_sum", correct=True))


@pytest.mark.parametrize(("index", "byte"), [(64, 256), (1000, 4000), (-1, -4)])
def test_store_beside_shared_memory_raises(kernels, index, byte):
    kernels.store_shared(63, 64)
    with pytest.raises(RuntimeError, match=f"wrote at byte {byte} of its 256 bytes of shared memory, in block .0,0,0."):
        kernels.store_shared(index, 64)


def test_store_beside_an_array_is_seen(kernels, memory):
    x, out = memory.input(np.ones(4), np.float32), memory.output(4, np.float32)
    kernels.copy_global(x, 0, out, 4)
    with pytest.raises(AssertionError, match="a kernel wrote beside an array"):
        memory.check_guards()


def test_shared_memory_is_nan_when_a_block_starts(kernels, memory, schedule):
    out = memory.output(THREADS, np.float32)
    out[:] = 0
    kernels.copy_shared(out, THREADS, 3)
    assert np.isnan(out).all()


def run_double(kernels, memory, haste):
    x, out = memory.input(np.arange(THREADS), np.float32), memory.output(THREADS, np.float32)
    out[:] = -1
    kernels.double(x, out, THREADS, ("none", "reads", "writes", "one_thread_goes_on").index(haste))
    return x, out


def test_values_of_the_kernel_before(kernels, memory, schedule):
    x, out = run_double(kernels, memory, "none")
    np.testing.assert_array_equal(out, 2 * x)


def test_what_a_kernel_touches_before_it_waits_is_not_there(kernels, memory, schedule):
    _, out = run_double(kernels, memory, "reads")
    assert np.isnan(out).any()
    _, out = run_double(kernels, memory, "writes")
    assert (out == -1).any()


def test_every_thread_waits(kernels, memory, schedule):
    with pytest.raises(RuntimeError, match="a thread did not wait for the kernel before its own"):
        run_double(kernels, memory, "one_thread_goes_on")


@pytest.mark.parametrize(
    ("threads", "blocks"),
    [((1025, 1, 1), (1, 1, 1)), ((1, 1, 1), (0, 1, 1)), ((0, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 65536, 1))],
)
def test_what_cuda_would_not_launch_raises(kernels, threads, blocks):
    with pytest.raises(RuntimeError, match="invalid launch: grid"):
        kernels.order(np.zeros(1, np.int32), np.zeros(1, np.int32), *threads, *blocks)


def run_order(kernels, schedule, seed=0):
    """position[block][thread] of the run, for blocks of 4 x 3 x 2 threads and a grid of 3 x 2 x 2 blocks."""
    kernels.set_schedule(schedule, seed)
    position = np.full((12, 24), -1, np.int32)
    kernels.order(np.zeros(1, np.int32), position, 4, 3, 2, 3, 2, 2)
    kernels.set_schedule("forward", 0)
    assert sorted(position.ravel()) == list(range(12 * 24))  # every thread of every block once
    return position


def test_schedules(kernels):
    forward = run_order(kernels, "forward")
    np.testing.assert_array_equal(forward.ravel(), np.arange(12 * 24))
    np.testing.assert_array_equal(run_order(kernels, "reverse"), forward[::-1, ::-1])
    np.testing.assert_array_equal(run_order(kernels, "random", 1), run_order(kernels, "random", 1))
    first, second = run_order(kernels, "random", 1), run_order(kernels, "random", 2)
    for position in (first, second):
        assert (np.argsort(position.min(axis=1)) != np.arange(12)).any()  # blocks are shuffled
        assert (np.diff(position, axis=1) != 1).any()  # and threads within them
    assert (first != second).any()


@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("argument", [0, 1, 5, 16])
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_shuffles(kernels, memory, schedule, dtype, argument, width):
    np_dtype = {"float": np.float32, "double": np.float64}[dtype]
    x = memory.input(np.random.default_rng(0).standard_normal(32), np_dtype)
    by_xor, by_down, by_index = (memory.output(32, np_dtype) for _ in range(3))
    getattr(kernels, f"shuffle_{dtype}")(x, by_xor, by_down, by_index, argument, width)
    lane = np.arange(32)
    last = lane | (width - 1)  # of the lane's group; beyond it a lane gets its own value
    np.testing.assert_array_equal(by_xor, x[np.where((lane ^ argument) <= last, lane ^ argument, lane)])
    np.testing.assert_array_equal(by_down, x[np.where(lane + argument <= last, lane + argument, lane)])
    np.testing.assert_array_equal(by_index, x[lane // width * width + argument % width])


def test_shuffle_from_a_lane_that_takes_no_part_is_nan(kernels, memory, schedule):
    out = memory.output(32, np.float32)
    out[:] = -1
    kernels.partial_shuffle(out, 0b11011)
    np.testing.assert_array_equal(out[:6], [1, 0, -1, np.nan, np.nan, -1])


def round_trip(kernels, memory, values, dtype):
    """from_float and to_float of csrc/cuda over `values`: (stored, back in float)."""
    x, stored, back = (
        memory.input(values, np.float32),
        memory.output(values.shape, dtype),
        memory.output(values.shape, np.float32),
    )
    kernels.round_trip(dtype, x, stored, back, values.size)
    return stored, back


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, about NaN and infinity
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_round_as_ieee(kernels, memory, dtype):
    """Every half and bfloat16 value returns as it went, and what lies between rounds to the nearest, ties to even."""
    every = np.arange(1 << 16, dtype=np.uint16)
    values = decode(every.view(np.float16) if dtype == "float16" else every, dtype).astype(np.float32)
    _, back = round_trip(kernels, memory, values, dtype)
    np.testing.assert_array_equal(back, values)

    finite = np.sort(values[np.isfinite(values)])
    ties = (finite[:-1] + (finite[1:] - finite[:-1]) / 2).astype(np.float32)
    between = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))])
    extremes = np.array([65519.9, 65520.0, 3.4e38, -3.4e38, 1e-8, -1e-45, np.inf, -np.inf, np.nan], np.float32)
    values = np.concatenate([between, extremes])
    stored, _ = round_trip(kernels, memory, values, dtype)
    np.testing.assert_array_equal(decode(stored, dtype), decode(encode(values, dtype), dtype))


def test_a_nan_never_rounds_to_infinity(kernels, memory):
    """Adding half a bfloat16 unit to this NaN's bits would carry into the sign."""
    values = np.array([0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    for dtype in DTYPES:
        assert np.isnan(round_trip(kernels, memory, values, dtype)[1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float32",), "expected 5 arguments"),
        (("float64", None, None, None, 0), "argument 0: expected 'float32', 'float16' or 'bfloat16'"),
        (("float32", np.zeros(1), None, None, 0), "argument 1: expected an array of the pointer's element type"),
        (("float32", None, 1.0, None, 0), "argument 2: expected an array or None"),
        (("float32", None, np.broadcast_to(np.zeros(1), 1), None, 0), "argument 2: expected a writeable array"),
        (("float32", None, None, None, 0.5), "argument 4: expected an integer"),
    ],
)
def test_bindings_reject_what_does_not_fit(kernels, arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.round_trip(*arguments)

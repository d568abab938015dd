# SPDX-License-Identifier: MIT
"""The interpreter shows what is wrong: kernels with a bug (tests/cuda_on_cpu/controls.cu), and kernels of the library in
whose PTX something was changed.
"""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest

from tests.cuda_on_cpu.convolution import NONE, Case, Sizes
from tests.cuda_on_cpu.memory import assert_accurate
from tests.cuda_on_cpu.test_convolution_wgmma import TILES
from tests.cuda_on_cpu.test_gaussian_kl_loss import random
from tests.cuda_on_cpu.test_gaussian_kl_loss import run as run_kl
from tests.cuda_on_cpu.test_reparameterize_with_kl import forward as forward_with_kl
from tests.cuda_on_cpu.test_reparameterize_with_kl import latents

THREADS = 128


@pytest.fixture
def controls(kernels, ptx):
    for name in ("controls.cu", "ptx_controls.cu", "ptx_sm90_controls.cu"):
        kernels.load_ptx(str(ptx[name]))
    return kernels


# ---- Kernels with a bug.


@pytest.mark.parametrize("name", ["tree_sum", "swap_pairs", "rotate_warps"])
@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_a_dropped_barrier_shows_in_any_order(controls, memory, name, schedule):
    """Also in an order in which the sum of a tree is right."""
    controls.set_schedule(schedule, 1)
    x, out = memory.input(np.arange(THREADS), np.float32), memory.output(THREADS, np.float32)
    getattr(controls, name)(x, out, THREADS, True)
    if name == "tree_sum":
        assert out[0] == x.sum()
    else:
        np.testing.assert_array_equal(
            out, x.reshape(-1, 2)[:, ::-1].ravel() if name == "swap_pairs" else np.roll(x, -32)
        )
    # Whichever of the two threads was first.
    with pytest.raises(RuntimeError, match=r"race: thread .*, and nothing orders the two|that nothing has written"):
        getattr(controls, name)(x, out, THREADS, False)


def test_copies_that_are_not_waited_for_are_races(controls, memory):
    x, out = memory.input(np.ones((32, 4)), np.float32), memory.output((32, 4), np.float32)
    controls.async_copy(x, out, 32, True)
    with pytest.raises(
        RuntimeError, match=r"race: thread .* reads shared memory .* that the cp.async of thread .* wrote"
    ):
        controls.async_copy(x, out, 32, False)
    x, out = memory.input(np.ones((5, 32, 4)), np.float32), memory.output((5, 32, 4), np.float32)
    controls.async_pipeline(x, out, 5, True)
    with pytest.raises(RuntimeError, match=r"race: .* shared memory .* that (the cp.async of )?thread .*"):
        controls.async_pipeline(x, out, 5, False)
    array = memory.input(np.ones((1, 1, 4, 64)), "float16")
    numbers = memory.input(np.array([64, 4, 1, 1, 64, 4, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]), np.int64)
    box = memory.output(512, np.uint8)
    controls.tma_box(array, numbers, True, 512, box)
    with pytest.raises(RuntimeError, match=r"race: .* reads .* that a copy that completes on barrier 0 wrote"):
        controls.tma_box(array, numbers, False, 512, box)


@pytest.mark.parametrize(
    ("divergence", "message"),
    [
        (0, r"64 threads at bar\.sync \(controls.cu.ptx:\d+\), 64 threads returned"),
        (1, r"64 threads at bar\.sync \(controls.cu.ptx:\d+\), 64 threads returned; block \(0,0,0\) of 128 threads"),
        (2, r"meets at different places: 64 threads at bar\.sync .*, 64 threads at bar\.sync"),
        (3, r"124 threads at shfl\.sync\.bfly\.b32 \(controls.cu.ptx:\d+\), 4 threads returned"),
        (4, r"a lane is not in its own mask: 1 thread at bar\.warp\.sync"),
        (5, r"64 threads at bar\.warp\.sync .*, 64 threads at shfl\.sync"),
    ],
    ids=["half_the_block", "early_return", "two_places", "missing_lane", "not_in_own_mask", "mixed"],
)
def test_divergent_barriers_raise(controls, divergence, message):
    with pytest.raises(RuntimeError, match=message):
        controls.diverge(divergence, THREADS)


def test_what_lies_beside_memory_raises(controls, memory):
    controls.store_shared(63, 64)
    for index in (64, 1000, -1):
        with pytest.raises(RuntimeError, match="beyond shared memory: 4 bytes"):
            controls.store_shared(index, 64)
    x, out = memory.input(np.ones(4), np.float32), memory.output(4, np.float32)
    controls.copy_global(x, 3, out, 3)
    for at, to in ((0, 4), (-1, 0), (4, 0)):
        with pytest.raises(RuntimeError, match=r"beyond global memory.*; (ld|st)\.global\.f32"):
            controls.copy_global(x, at, out, to)


def test_shared_memory_is_not_read_before_it_is_written(controls, memory):
    with pytest.raises(RuntimeError, match="shared memory is read that nothing has written"):
        controls.copy_shared(memory.output(THREADS, np.float32), THREADS, 3)


def test_a_misaligned_access_raises(controls, memory):
    with pytest.raises(RuntimeError, match="address is not 16-byte aligned"):
        controls.load_pack(memory.input(np.zeros(4), np.float32, 1), memory.output(4, np.float32))


@pytest.mark.parametrize("haste", [1, 2, 3], ids=["reads", "writes", "one_thread_goes_on"])
def test_global_memory_before_the_wait_raises(controls, memory, haste):
    x, out = memory.input(np.arange(THREADS), np.float32), memory.output(THREADS, np.float32)
    controls.double(x, out, THREADS, 0)
    np.testing.assert_array_equal(out, 2 * x)
    with pytest.raises(RuntimeError, match="before the kernel has waited for the one before it"):
        controls.double(x, out, THREADS, haste)


# ---- PTX in which something was changed.


def load_changed(kernels, path, tmp_path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count > 0, "there is nothing to change"
    changed = tmp_path / path.name
    changed.write_text(text)
    kernels.load_ptx(str(changed))


SIZES = Sizes(True, 2, 200, 72, 5, 4, 4, 2, 1)  # of four patches, so that buffers are filled again


def block_is_right(kernels, memory, tmp_path, ptx, pattern, replacement, dtype, kernel, tile) -> bool:
    """Whether a convolution is, with the changed kernel; the packing of its weight stays what it was."""
    case = Case(memory, SIZES, dtype)
    packed = case.pack(kernels, memory)
    load_changed(kernels, ptx[f"{kernel}_kernel.cu"], tmp_path, pattern, replacement)
    out = memory.output(case.exact.shape, dtype)
    run = getattr(kernels, kernel)
    run(dtype, SIZES.array(), tile, case.x, packed, case.bias, *[None] * 4, 1e-5, NONE, 0.0, out, None)
    with contextlib.suppress(AssertionError):
        assert_accurate(out, case.exact, dtype)
        return True
    return False


def assert_change_shows(message: str | None, *arguments) -> None:
    """As a wrong result, or, with a message, as an error."""
    with contextlib.nullcontext() if message is None else pytest.raises(RuntimeError, match=message):
        assert not block_is_right(*arguments)
        assert message is None


NOTHING = ("$^|\\Z", "")
B_OF_MMA = r"(mma\.sync[^;]*\}, \{%r\d+, %r\d+, %r\d+, %r\d+\}, )\{(%r\d+), (%r\d+)\}"


@pytest.mark.parametrize(
    ("dtype", "pattern", "replacement", "message"),
    [
        ("float16", B_OF_MMA, r"\1{\3, \2}", None),  # halves of depth exchanged
        ("float32", B_OF_MMA, r"\1{\3, \2}", None),
        ("bfloat16", r"(ldmatrix\.sync\.aligned\.m8n8\.x4)\.shared", r"\1.trans.shared", None),
        ("float16", r"cp\.async\.wait_group 2;", "cp.async.wait_group 3;", "race: .* that the cp.async of thread"),
        ("float16", r"bar\.sync \t0;", "", "race: |that nothing has written"),
    ],
)
def test_a_change_of_the_tensor_core_kernel_shows(kernels, memory, tmp_path, ptx, dtype, pattern, replacement, message):
    arguments = (dtype, "convolution_tensor_core", 0)
    assert block_is_right(kernels, memory, tmp_path, ptx, *NOTHING, *arguments)
    kernels.unload_ptx()
    assert_change_shows(message, kernels, memory, tmp_path, ptx, pattern, replacement, *arguments)


DESCRIPTOR = 4611686293305360384  # 128-byte swizzle, 1024 bytes from eight rows to the next
OF_WGMMA = {
    "swizzle": (str(DESCRIPTOR), str(DESCRIPTOR & ~(1 << 62)), "another swizzle"),
    "stride": (str(DESCRIPTOR), str(DESCRIPTOR - (32 << 32)), None),
    "base offset": (str(DESCRIPTOR), str(DESCRIPTOR | 1 << 49), "a base offset"),
    "depth": (r"(add\.s64 \t%rd\d+, %rd\d+), 2;(\s+// begin inline asm\s+wgmma)", r"\1, 4;\2", None),
    "no fence": (r"wgmma\.fence\.sync\.aligned;", "", "written between wgmma.fence and it"),
    "no commit": (r"wgmma\.commit_group\.sync\.aligned;", "", "race: .* that the wgmma of warp"),
    "no wait": (r"wgmma\.wait_group\.sync\.aligned 0;", "", "race: .* that the wgmma of warp"),
    "wait for all but one": (r"(wgmma\.wait_group\.sync\.aligned) 0;", r"\1 1;", "race: .* that the wgmma of warp"),
    "no barrier of the warp": (r"bar\.warp\.sync \t-1;", "", "race: .* writes shared memory .* that thread .* read"),
    "A": (r"(wgmma\.mma_async[^;]*\}, )\{(%r\d+), (%r\d+)", r"\1{\3, \2", None),
    "sums": (r"(wgmma\.mma_async[\w.]* )\{(%f\d+), (%f\d+), (%f\d+)", r"\1{\4, \3, \2", None),
    "no proxy fence": (r"\tfence\.proxy\.async\.shared::cta;", "", "has not executed fence.proxy.async since"),
    "barriers not published": (r"fence\.mbarrier_init\S+ fence\.proxy\.async\S+", "", "not fenced since"),
    "bytes": (r"(mbarrier\.arrive\.expect_tx\S+ state, \[%r\d+\]), %r\d+", r"\1, 64", "the block cannot go on"),
    "no wait for the copy": (r"\{ \.reg \.pred over; [^}]*selp\.b32 (%r\d+)[^}]*\}", r"mov.u32 \1, 1;", "that nothing has written|race: "),
    "coordinates": (r"\{(%r\d+), (%r\d+), (%r\d+), (%r\d+)\}\], \[", r"{\1, \3, \2, \4}], [", None),
    "no wait for the kernel before": (r"griddepcontrol\.wait;", "", "before the kernel has waited"),
    "no barrier of the block": (r"bar\.sync \t0;", "", "race: |not initialised|that nothing has written"),
    "halves of a pair": (r"cvt\.rn\.(b?f16)x2\.f32 (%r\d+), (%f\d+), (%f\d+);", r"cvt.rn.\1x2.f32 \2, \4, \3;", None),
}  # fmt: skip


@pytest.mark.parametrize("change", OF_WGMMA)
def test_a_change_of_the_wgmma_kernel_shows(kernels, memory, tmp_path, ptx, change):
    pattern, replacement, message = OF_WGMMA[change]
    arguments = ("bfloat16", "convolution_wgmma", TILES["128x128"])
    assert block_is_right(kernels, memory, tmp_path, ptx, *NOTHING, *arguments)
    kernels.unload_ptx()
    assert_change_shows(message, kernels, memory, tmp_path, ptx, pattern, replacement, *arguments)


def test_a_barrier_less_in_a_reduction_is_a_race(kernels, memory, tmp_path, ptx):
    load_changed(kernels, ptx["gaussian_kl_loss_kernel.cu"], tmp_path, r"bar\.sync \t0;", "")
    mu, logvar = memory.input(random(64, 1), "float32"), memory.input(random(64, 2), "float32")
    with pytest.raises(RuntimeError, match=r"race: .* shared memory|that nothing has written"):
        run_kl(kernels, memory, "float32", mu, logvar, sum=memory.output(1, "float32"))


@pytest.mark.parametrize("follower", [r"\s+cvta", r"\s+\$L"], ids=["before the ticket", "after it"])
def test_partial_sums_need_both_fences(kernels, memory, tmp_path, ptx, follower):
    """The last block reads what others wrote: they must fence it before they take a ticket, and it after."""
    pattern = rf"membar\.gl;({follower})"
    load_changed(kernels, ptx["reparameterize_with_kl_kernel.cu"], tmp_path, pattern, r"\1")
    mu, logvar = latents(memory, "float32", 5000)
    seed, z, total = memory.input(np.array([1]), np.int64), memory.output(5000, "float32"), memory.output(1, "float32")
    with pytest.raises(RuntimeError, match=r"race: .* reads global memory .* that thread .* of another block wrote"):
        forward_with_kl(kernels, memory, "float32", mu, logvar, seed, z, sum=total)


def test_transposed_matrices_are_not_others(kernels, memory, tmp_path, ptx):
    load_changed(kernels, ptx["ptx_controls.cu"], tmp_path, r"\.x4\.trans\.", ".x4.")
    matrices = memory.input(np.arange(256).reshape(4, 8, 8), np.uint16)
    out = [memory.output((32, 4), np.uint32) for _ in range(2)]
    for transposed in (False, True):
        kernels.ldmatrix(matrices, out[transposed], transposed)
    np.testing.assert_array_equal(*out)


def test_a_kernel_without_ptx_raises(kernels, memory, ptx):
    """It does not run as C++ instead."""
    kernels.load_ptx(str(ptx["controls.cu"]))
    mu, logvar = memory.input(random(64, 1), "float32"), memory.input(random(64, 2), "float32")
    with pytest.raises(RuntimeError, match=r"no PTX of genimg_fast::cuda::\(anonymous namespace\)::.*kl_kernel"):
        run_kl(kernels, memory, "float32", mu, logvar, loss=memory.output(64, "float32"))


def test_parameters_of_another_size_raise(kernels, memory, tmp_path, ptx):
    load_changed(kernels, ptx["controls.cu"], tmp_path, r"\.param \.u32 (\S*store_shared_kernel\S*)", r".param .u64 \1")
    with pytest.raises(RuntimeError, match=r"parameter 0 has 8 bytes in PTX, and 4 in C\+\+"):
        kernels.store_shared(0, 64)

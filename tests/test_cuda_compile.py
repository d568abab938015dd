# SPDX-License-Identifier: MIT
"""Every CUDA kernel compiles and keeps its values in registers.  `make cuda-compile` asks the same for all architectures."""

from __future__ import annotations

import shutil

import pytest

from tests.cuda_on_cpu import cuda_compile

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")

SPILLING_KERNEL = """
__global__ void __launch_bounds__(1024) crowded(float* p, int n) {
  float v[96];  // of 64 registers
  for (int i = 0; i < 96; ++i) v[i] = p[i * 1024 + threadIdx.x];
  for (int k = 0; k < n; ++k)
#pragma unroll
    for (int i = 0; i < 96; ++i) v[i] = v[i] * v[(i + 7) % 96] + p[k];
  for (int i = 0; i < 96; ++i) p[i * 1024 + threadIdx.x] = v[i];
}
"""


HASTY_KERNEL = """
#include "cuda/ptx_sm90.cuh"
namespace genimg_fast::cuda {
__global__ void hasty(bool waits, float* out) {
  float acc[1][8][4] = {};
  const uint32_t fragment[4] = {};
  wgmma_fence();
  wgmma<__half>(acc[0], fragment, 0);
  wgmma_commit();
  if (waits) wgmma_wait_all(acc);
  for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = acc[0][i / 4][i % 4];
  if (!waits) wgmma_wait_all(acc);
}
}
"""


@needs_nvcc
def test_every_kernel_compiles_for_sm_90a_without_spills(capsys):
    assert cuda_compile.main(["--arch", "90a"]) == 0, capsys.readouterr().err
    table = capsys.readouterr().out
    assert "kl_kernel<__nv_bfloat16, 8>" in table
    assert "mma_kernel<__half>" in table
    assert "convolution_wgmma_kernel<__half, WgmmaTile<128, 128> >" in table


@needs_nvcc
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SPILLING_KERNEL, "spilling: crowded (sm_90a)"),
        ("__global__ void k() { not_there(); }", '"not_there" is undefined'),
        (HASTY_KERNEL, "wgmma one after the other, for sm_90a: non wgmma instructions"),
    ],
)
def test_a_spill_a_stall_or_an_error_fails(tmp_path, capsys, source, message):
    file = tmp_path / "control.cu"
    file.write_text(source)
    assert cuda_compile.main(["--arch", "90a", str(file)]) == 1
    assert message in capsys.readouterr().err


def test_reads_what_ptxas_prints():
    text = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN11genimg_fast4cuda12_GLOBAL__N_19kl_kernelIfLi4EEEvPKT_S4_PS2_l' for 'sm_90a'
ptxas info    : Function properties for _ZN11genimg_fast4cuda12_GLOBAL__N_19kl_kernelIfLi4EEEvPKT_S4_PS2_l
    416 bytes stack frame, 804 bytes spill stores, 824 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 416 bytes cumulative stack size, 128 bytes smem, 384 bytes cmem[0]
"""
    assert cuda_compile.parse(text) == [cuda_compile.Kernel("kl_kernel<float, 4>", "90a", 32, 128, 416, 1628)]


def test_architectures_are_those_of_the_wheel():
    assert cuda_compile.architectures() == ["80", "86", "89", "90a", "100"]

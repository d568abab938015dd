// SPDX-License-Identifier: MIT
// Kernels that test the functions of cuda/ptx.cuh, one warp each.  nvcc compiles this file too, so that the assembly
// behind the functions is seen by an assembler even before a kernel of the library uses it.
#include "cuda/ptx.cuh"

namespace genimg_fast::cuda {
namespace {

// out = in, 16 bytes a thread through shared memory; zeros where chunk >= valid_chunks.
__global__ void async_copy_kernel(const uint4* in, uint4* out, int valid_chunks, bool correct) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(uint4, buffer);  // [32]
  const int chunk = threadIdx.x;
  cp_async<16>(buffer + chunk, in + chunk, chunk < valid_chunks);
  cp_async_commit();
  if (correct) cp_async_wait<0>();
  __syncthreads();
  out[chunk] = buffer[chunk ^ 1];
}

// Chunks of 32 x 16 bytes through two buffers: the next chunk is under way while this one is read.
__global__ void async_pipeline_kernel(const uint4* in, uint4* out, int chunks, bool correct) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(uint4, buffer);  // [2][32]
  const int lane = threadIdx.x;
  cp_async<16>(buffer + lane, in + lane);
  cp_async_commit();
  for (int c = 0; c < chunks; ++c) {
    const bool more = c + 1 < chunks;
    cp_async<16>(buffer + (c + 1) % 2 * 32 + lane, in + (c + 1) * 32 + lane, more);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    out[c * 32 + lane] = buffer[c % 2 * 32 + 31 - lane];
    if (correct) __syncthreads();  // else the next chunk overwrites what another lane has not yet read
  }
}

// fragments[lane][4] of four 8 x 8 matrices of 16-bit elements.
__global__ void ldmatrix_kernel(const uint16_t* matrices, uint32_t* fragments, bool transposed) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(uint16_t, shared);  // [4][8][8]
  for (int i = threadIdx.x; i < 256; i += 32) shared[i] = matrices[i];
  __syncthreads();
  uint32_t out[4];
  if (transposed)
    ldmatrix_x4_trans(out, shared + threadIdx.x * 8);
  else
    ldmatrix_x4(out, shared + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i) fragments[threadIdx.x * 4 + i] = out[i];
}

struct Tf32 {};

// accumulator[lane][4] += a[lane][4] * b[lane][2], the operands given as fragments.
template <typename T>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, float* accumulator) {
  await_previous_kernel();
  uint32_t a_fragment[4], b_fragment[2];
  float acc[4];
  for (int i = 0; i < 4; ++i) a_fragment[i] = a[threadIdx.x * 4 + i], acc[i] = accumulator[threadIdx.x * 4 + i];
  for (int i = 0; i < 2; ++i) b_fragment[i] = b[threadIdx.x * 2 + i];
  if constexpr (std::is_same_v<T, Tf32>)
    mma_m16n8k8_tf32(acc, a_fragment, b_fragment);
  else
    mma_m16n8k16<T>(acc, a_fragment, b_fragment);
  for (int i = 0; i < 4; ++i) accumulator[threadIdx.x * 4 + i] = acc[i];
}

__global__ void to_tf32_kernel(const float* in, uint32_t* out, int numel) {
  await_previous_kernel();
  for (int i = threadIdx.x; i < numel; i += 32) out[i] = to_tf32(in[i]);
}

}  // namespace

void async_copy(const void* in, void* out, int valid_chunks, bool correct) {
  launch(async_copy_kernel, dim3(1), dim3(32), 32 * 16, nullptr, static_cast<const uint4*>(in),
         static_cast<uint4*>(out), valid_chunks, correct);
}

void async_pipeline(const void* in, void* out, int chunks, bool correct) {
  launch(async_pipeline_kernel, dim3(1), dim3(32), 2 * 32 * 16, nullptr, static_cast<const uint4*>(in),
         static_cast<uint4*>(out), chunks, correct);
}

void ldmatrix(const uint16_t* matrices, uint32_t* fragments, bool transposed) {
  launch(ldmatrix_kernel, dim3(1), dim3(32), 256 * sizeof(uint16_t), nullptr, matrices, fragments, transposed);
}

void mma(DType dtype, const uint32_t* a, const uint32_t* b, float* accumulator) {
  const auto kernel = dtype == DType::float16    ? mma_kernel<__half>
                      : dtype == DType::bfloat16 ? mma_kernel<__nv_bfloat16>
                                                 : mma_kernel<Tf32>;
  launch(kernel, dim3(1), dim3(32), 0, nullptr, a, b, accumulator);
}

void tf32(const float* in, uint32_t* out, int numel) {
  launch(to_tf32_kernel, dim3(1), dim3(32), 0, nullptr, in, out, numel);
}

}  // namespace genimg_fast::cuda

#ifdef GENIMG_FAST_CUDA_ON_CPU
#include "binding.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast::cuda;
  cuda_on_cpu::bind("async_copy", &async_copy);
  cuda_on_cpu::bind("async_pipeline", &async_pipeline);
  cuda_on_cpu::bind("ldmatrix", &ldmatrix);
  cuda_on_cpu::bind("mma", &mma);
  cuda_on_cpu::bind("tf32", &tf32);
}
#endif

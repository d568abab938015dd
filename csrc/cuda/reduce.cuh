// SPDX-License-Identifier: MIT
// Deterministic sums: a fixed tree within a block, one partial a block, and a second kernel, or the last block of the
// first one, that adds the partials in order.  No atomics on what is summed.
#pragma once
#include "cuda/ptx.cuh"

namespace genimg_fast::cuda {

__device__ __forceinline__ float warp_sum(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

// The sum over a block of kThreads threads; valid in thread 0.  `scratch` holds kThreads / 32 floats.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  __syncthreads();  // scratch may still be read from an earlier call
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x < kThreads / 32 ? scratch[threadIdx.x] : 0.0f;
  return threadIdx.x < 32 ? warp_sum(v) : 0.0f;
}

// partial[0] + ... + partial[count - 1] by one block of kThreads threads; valid in thread 0.  Doubles: the last stage
// should not add error.  lane_sum: [kThreads]
__device__ __forceinline__ double block_sum_partials(const float* partial, int count, double* lane_sum) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  __syncthreads();  // lane_sum may still be read from an earlier call
  lane_sum[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) lane_sum[threadIdx.x] += lane_sum[threadIdx.x + half];
  }
  return threadIdx.x == 0 ? lane_sum[0] : 0.0;
}

// Leaves the block's sum, which thread 0 knows, as partial[blockIdx.x], and returns whether all other blocks have left
// theirs: to the last block, whichever it is, all partials are visible.  ticket[0] was 0 when the kernel began;
// `shared` is one int of shared memory.
__device__ __forceinline__ bool is_last_to_leave(float sum, float* partial, int* ticket, int* shared) {
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();  // whoever sees the ticket taken sees the partial
    *shared = atomicAdd(ticket, 1);
    __threadfence();  // and who took the last one, all partials
  }
  __syncthreads();
  return *shared == static_cast<int>(gridDim.x) - 1;
}

// out[0] = scale * (partial[0] + ... + partial[count - 1]), one block.
template <typename T>
__global__ void sum_partials_kernel(const float* partial, int count, double scale, T* out) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(double, lane_sum);
  const double sum = block_sum_partials(partial, count, lane_sum);
  if (threadIdx.x == 0) out[0] = from_float<T>(static_cast<float>(scale * sum));
}

inline void sum_partials(const float* partial, int count, double scale, void* out, DType dtype, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(sum_partials_kernel<T>, dim3(1), dim3(kThreads), kThreads * sizeof(double), stream, partial, count, scale,
           static_cast<T*>(out));
  });
}

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
// Kernels that test the shim, not the library.  Most have a `correct` argument: with false they contain the bug that
// the shim must show.
#include "binding.h"
#include "cuda/ptx.cuh"

namespace genimg_fast::cuda {
namespace {

// out[0] = the sum of blockDim.x values, a power of two.
__global__ void tree_sum_kernel(const float* in, float* out, bool correct) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, scratch);  // [blockDim.x]
  scratch[threadIdx.x] = in[threadIdx.x];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (correct || half != 16) __syncthreads();
    if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
  }
  if (threadIdx.x == 0) out[0] = scratch[0];
}

// out[i] = in[i ^ 1], within a warp.
__global__ void swap_pairs_kernel(const float* in, float* out, bool correct) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, scratch);  // [blockDim.x]
  scratch[threadIdx.x] = in[threadIdx.x];
  if (correct) __syncwarp();
  out[threadIdx.x] = scratch[threadIdx.x ^ 1];
}

// out[i] = in[(i + 32) % blockDim.x], from the next warp.  A warp barrier is not enough.
__global__ void rotate_warps_kernel(const float* in, float* out, bool correct) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, scratch);  // [blockDim.x]
  scratch[threadIdx.x] = in[threadIdx.x];
  if (correct)
    __syncthreads();
  else
    __syncwarp();
  out[threadIdx.x] = scratch[(threadIdx.x + 32) % blockDim.x];
}

__global__ void store_shared_kernel(int index) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, scratch);
  if (threadIdx.x == 0) scratch[index] = 1;
}

__global__ void copy_shared_kernel(float* out) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(float, scratch);  // [blockDim.x]
  out[threadIdx.x] = scratch[threadIdx.x];
  scratch[threadIdx.x] = 1;  // which the next block must not see
}

__global__ void copy_global_kernel(const float* in, int from, float* out, int to) {
  await_previous_kernel();
  if (threadIdx.x == 0) out[to] = in[from];
}

// out[i] = 2 * in[i]: the values of another kernel, perhaps of one that still runs.
enum class Haste : int64_t { none, reads, writes, one_thread_goes_on };

__global__ void double_kernel(const float* in, float* out, Haste haste) {
  const unsigned i = threadIdx.x;
  float value = 0;
  if (haste == Haste::reads) value = in[i];
  if (haste == Haste::writes) out[i] = 0;
  if (haste != Haste::one_thread_goes_on || i != 5) await_previous_kernel();
  if (haste != Haste::reads) value = in[i];
  if (haste != Haste::writes) out[i] = 2 * value;
}

__global__ void load_pack_kernel(const float* in, float* out) {
  await_previous_kernel();
  *reinterpret_cast<Pack<float, 4>*>(out) = *reinterpret_cast<const Pack<float, 4>*>(in);
}

enum class Divergence : int64_t { half_the_block, early_return, two_places, missing_lane, not_in_own_mask, mixed };

__global__ void diverge_kernel(Divergence kind) {
  await_previous_kernel();
  const bool first_half = threadIdx.x < blockDim.x / 2;
  switch (kind) {
    case Divergence::half_the_block:
      if (first_half)
        __syncthreads();
      else
        __syncwarp();
      break;
    case Divergence::early_return:
      if (first_half) return;
      __syncthreads();
      break;
    case Divergence::two_places:
      if (first_half)
        __syncthreads();
      else
        __syncthreads();
      break;
    case Divergence::missing_lane:
      if (threadIdx.x % 32 != 5) __shfl_xor_sync(0xffffffffu, 1.0f, 1);
      break;
    case Divergence::not_in_own_mask:
      __syncwarp(0x0000fffeu);
      break;
    case Divergence::mixed:
      if (threadIdx.x % 2)
        __syncwarp();
      else
        __shfl_xor_sync(0xffffffffu, 1.0f, 1);
      break;
  }
}

// Each thread writes the order in which it ran.  counter: 1 int, 0 at first.
__global__ void order_kernel(int* counter, int* position) {
  await_previous_kernel();
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  position[block * threads + thread] = (*counter)++;
}

// The three shuffles by the same argument.
template <typename T>
__global__ void shuffle_kernel(const T* in, T* by_xor, T* by_down, T* by_index, int argument, int width) {
  await_previous_kernel();
  const T value = in[threadIdx.x];
  by_xor[threadIdx.x] = __shfl_xor_sync(0xffffffffu, value, argument, width);
  by_down[threadIdx.x] = __shfl_down_sync(0xffffffffu, value, argument, width);
  by_index[threadIdx.x] = __shfl_sync(0xffffffffu, value, argument, width);
}

// The lanes of `mask` shuffle, and read one that takes no part.
__global__ void partial_shuffle_kernel(float* out, unsigned mask) {
  await_previous_kernel();
  const unsigned lane = threadIdx.x;
  if (mask >> lane & 1) out[lane] = __shfl_xor_sync(mask, static_cast<float>(lane), 1);
}

template <typename T>
__global__ void round_trip_kernel(const float* in, T* rounded, float* out, int numel) {
  await_previous_kernel();
  for (int i = threadIdx.x; i < numel; i += blockDim.x) {
    rounded[i] = from_float<T>(in[i]);
    out[i] = to_float(rounded[i]);
  }
}

template <typename T>
void shuffle(const T* in, T* by_xor, T* by_down, T* by_index, int argument, int width) {
  launch(shuffle_kernel<T>, dim3(1), dim3(32), 0, nullptr, in, by_xor, by_down, by_index, argument, width);
}

}  // namespace
}  // namespace genimg_fast::cuda

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast::cuda;
  using cuda_on_cpu::bind;

  bind("tree_sum", [](const float* in, float* out, int threads, bool correct) {
    launch(tree_sum_kernel, dim3(1), dim3(threads), threads * sizeof(float), nullptr, in, out, correct);
  });
  bind("swap_pairs", [](const float* in, float* out, int threads, bool correct) {
    launch(swap_pairs_kernel, dim3(1), dim3(threads), threads * sizeof(float), nullptr, in, out, correct);
  });
  bind("rotate_warps", [](const float* in, float* out, int threads, bool correct) {
    launch(rotate_warps_kernel, dim3(1), dim3(threads), threads * sizeof(float), nullptr, in, out, correct);
  });
  bind("store_shared", [](int index, int count) {
    launch(store_shared_kernel, dim3(2), dim3(32), count * sizeof(float), nullptr, index);
  });
  bind("copy_shared", [](float* out, int threads, int blocks) {
    launch(copy_shared_kernel, dim3(blocks), dim3(threads), threads * sizeof(float), nullptr, out);
  });
  bind("copy_global", [](const float* in, int from, float* out, int to) {
    launch(copy_global_kernel, dim3(1), dim3(32), 0, nullptr, in, from, out, to);
  });
  bind("double", [](const float* in, float* out, int threads, Haste haste) {
    launch(double_kernel, dim3(1), dim3(threads), 0, nullptr, in, out, haste);
  });
  bind("load_pack",
       [](const float* in, float* out) { launch(load_pack_kernel, dim3(1), dim3(1), 0, nullptr, in, out); });
  bind("diverge",
       [](Divergence kind, int threads) { launch(diverge_kernel, dim3(1), dim3(threads), 0, nullptr, kind); });
  bind("order", [](int* counter, int* position, int x, int y, int z, int blocks_x, int blocks_y, int blocks_z) {
    launch(order_kernel, dim3(blocks_x, blocks_y, blocks_z), dim3(x, y, z), 0, nullptr, counter, position);
  });
  bind("shuffle_float", &shuffle<float>);
  bind("shuffle_double", &shuffle<double>);
  bind("partial_shuffle",
       [](float* out, unsigned mask) { launch(partial_shuffle_kernel, dim3(1), dim3(32), 0, nullptr, out, mask); });
  bind("round_trip", [](DType dtype, const float* in, void* rounded, float* out, int numel) {
    dispatch(dtype, [&](auto zero) {
      using T = decltype(zero);
      launch(round_trip_kernel<T>, dim3(1), dim3(32), 0, nullptr, in, static_cast<T*>(rounded), out, numel);
    });
  });
}

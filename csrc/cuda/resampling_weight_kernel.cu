// SPDX-License-Identifier: MIT
// Weights of convolutions before or after a resampling by two, as those of the convolutions that the two are.
//
// Plan: a launch, and little else.  A thread makes one kernel of taps: 25 values in and out, 0.8 MB for 128 to 128
// channels in half precision, which is 0.2 us at 4.3 TB/s.  Threads side by side have kernels whose 16 taps, whole
// sectors, lie side by side.  After an upsampling the 9 lie a row of channels apart, in sectors that the threads of the
// next input channels read out of the L2 cache; before a mean they lie side by side too.  Sums are in float, rounded
// once.
#include "cuda/resampling_weight_kernel.h"

#include "common/resampling.h"
#include "cuda/elementwise.cuh"
#include "cuda/platform.cuh"

namespace genimg_fast::cuda {
namespace {

// Calls body(of the 9 taps, of the 16) with the offsets of the thread's kernels, one after the other.
template <typename Body>
__device__ __forceinline__ void each_kernel(int64_t out_channels, int64_t in_channels, bool pools, const Body& body) {
  const int64_t kernels = out_channels * in_channels, threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < kernels; k += threads) {
    const int64_t i = k / out_channels, o = k - i * out_channels;
    body((pools ? k : o * in_channels + i) * kPlainTaps, k * kResamplingTaps);
  }
}

template <typename T>
__global__ void resampling_weight_kernel(const T* weight, int64_t out_channels, int64_t in_channels, bool pools,
                                         T* resampling) {
  await_previous_kernel();
  each_kernel(out_channels, in_channels, pools, [&](int64_t of_taps, int64_t of_sums) {
    float sums[kResamplingTaps];
    resampling_taps(pools, [&](int k) { return to_float(weight[of_taps + k]); }, sums);
    for (int k = 0; k < kResamplingTaps; k += kPack<T>) {
      Pack<float, kPack<T>> values;
      for (int lane = 0; lane < kPack<T>; ++lane) values.lane[lane] = sums[k + lane];
      PackOf<kPack<T>>{}.store(resampling + of_sums + k, rounded_to<T>(values));
    }
  });
}

template <typename T>
__global__ void resampling_weight_grad_kernel(const T* grad, int64_t out_channels, int64_t in_channels, bool pools,
                                              T* grad_weight) {
  await_previous_kernel();
  each_kernel(out_channels, in_channels, pools, [&](int64_t of_taps, int64_t of_sums) {
    float sums[kResamplingTaps];
    for (int k = 0; k < kResamplingTaps; k += kPack<T>) {
      const auto values = load_floats<T>(PackOf<kPack<T>>{}, grad, of_sums + k, false);
      for (int lane = 0; lane < kPack<T>; ++lane) sums[k + lane] = values.lane[lane];
    }
    resampling_taps_backward(pools, sums, [&](int k, float value) { grad_weight[of_taps + k] = from_float<T>(value); });
  });
}

}  // namespace

void resampling_weight(DType dtype, const void* weight, int64_t out_channels, int64_t in_channels, bool pools,
                       void* resampling, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(resampling_weight_kernel<T>, dim3(most_blocks(out_channels * in_channels)), dim3(kThreads), 0, stream,
           static_cast<const T*>(weight), out_channels, in_channels, pools, static_cast<T*>(resampling));
  });
}

void resampling_weight_grad(DType dtype, const void* grad, int64_t out_channels, int64_t in_channels, bool pools,
                            void* grad_weight, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(resampling_weight_grad_kernel<T>, dim3(most_blocks(out_channels * in_channels)), dim3(kThreads), 0, stream,
           static_cast<const T*>(grad), out_channels, in_channels, pools, static_cast<T*>(grad_weight));
  });
}

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
// Weights of convolutions on doubled images, as those of transposed convolutions on the images themselves.
//
// Plan: a launch, and little else.  A thread makes one kernel of taps: 25 values in and out, 0.8 MB for 128 to 128
// channels in half precision, which is 0.2 us at 4.3 TB/s.  Threads side by side have output channels side by side, so
// that the 16 taps, whole sectors, lie side by side; the 9 lie a row of channels apart, in sectors that the threads of
// the next input channels read out of the L2 cache.  Sums are in float, rounded once.
#include "cuda/resize_convolution_weight_kernel.h"

#include "common/resize_convolution.h"
#include "cuda/elementwise.cuh"
#include "cuda/platform.cuh"

namespace genimg_fast::cuda {
namespace {

// Calls body(of the 9 taps, of the 16) with the offsets of the thread's kernels, one after the other.
template <typename Body>
__device__ __forceinline__ void each_kernel(int64_t out_channels, int64_t in_channels, const Body& body) {
  const int64_t kernels = out_channels * in_channels, threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < kernels; k += threads) {
    const int64_t i = k / out_channels, o = k - i * out_channels;
    body((o * in_channels + i) * kResizeTaps, k * kTransposedTaps);
  }
}

template <typename T>
__global__ void resize_weight_kernel(const T* weight, int64_t out_channels, int64_t in_channels, T* transposed) {
  await_previous_kernel();
  each_kernel(out_channels, in_channels, [&](int64_t of_taps, int64_t of_sums) {
    float taps[kResizeTaps], sums[kTransposedTaps];
    for (int k = 0; k < kResizeTaps; ++k) taps[k] = to_float(weight[of_taps + k]);
    sum_taps(taps, sums);
    for (int k = 0; k < kTransposedTaps; k += kPack<T>) {
      Pack<float, kPack<T>> values;
      for (int lane = 0; lane < kPack<T>; ++lane) values.lane[lane] = sums[k + lane];
      PackOf<kPack<T>>{}.store(transposed + of_sums + k, rounded_to<T>(values));
    }
  });
}

template <typename T>
__global__ void resize_weight_grad_kernel(const T* grad, int64_t out_channels, int64_t in_channels, T* grad_weight) {
  await_previous_kernel();
  each_kernel(out_channels, in_channels, [&](int64_t of_taps, int64_t of_sums) {
    float sums[kTransposedTaps], taps[kResizeTaps];
    for (int k = 0; k < kTransposedTaps; k += kPack<T>) {
      const auto values = load_floats<T>(PackOf<kPack<T>>{}, grad, of_sums + k, false);
      for (int lane = 0; lane < kPack<T>; ++lane) sums[k + lane] = values.lane[lane];
    }
    sum_taps_backward(sums, taps);
    for (int k = 0; k < kResizeTaps; ++k) grad_weight[of_taps + k] = from_float<T>(taps[k]);
  });
}

}  // namespace

void resize_convolution_weight(DType dtype, const void* weight, int64_t out_channels, int64_t in_channels,
                               void* transposed, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(resize_weight_kernel<T>, dim3(most_blocks(out_channels * in_channels)), dim3(kThreads), 0, stream,
           static_cast<const T*>(weight), out_channels, in_channels, static_cast<T*>(transposed));
  });
}

void resize_convolution_weight_grad(DType dtype, const void* grad, int64_t out_channels, int64_t in_channels,
                                    void* grad_weight, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(resize_weight_grad_kernel<T>, dim3(most_blocks(out_channels * in_channels)), dim3(kThreads), 0, stream,
           static_cast<const T*>(grad), out_channels, in_channels, static_cast<T*>(grad_weight));
  });
}

}  // namespace genimg_fast::cuda

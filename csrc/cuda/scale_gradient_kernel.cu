// SPDX-License-Identifier: MIT
// The gradient that a loss made in its forward pass, times what reaches the loss in backward.
//
// Plan: that is the 1 of `loss.backward()` nearly always, and the host cannot look at it without waiting.  So each
// thread does, and there is nothing to do: a launch, where a multiplication would read and write the gradient once
// more, two passes over memory of five.
#include "cuda/scale_gradient_kernel.h"

#include "cuda/elementwise.cuh"
#include "cuda/platform.cuh"

namespace genimg_fast::cuda {
namespace {

template <typename T, int N>
__global__ void scale_gradient_kernel(T* gradient, ChannelVector upstream, int64_t numel) {
  await_previous_kernel();
  const float factor = upstream[0];
  if (factor == 1.0f) return;
  for_each_pack<N>(numel, [&](int64_t i, auto pack) {
    auto values = load_floats<T>(pack, gradient, i, false);
    for (float& value : values.lane) value *= factor;
    pack.store(gradient + i, rounded_to<T>(values));
  });
}

}  // namespace

void scale_gradient(DType dtype, void* gradient, ChannelVector upstream, int64_t numel, Stream stream) {
  const bool wide = is_aligned(gradient);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto kernel = wide ? scale_gradient_kernel<T, kPack<T>> : scale_gradient_kernel<T, 1>;
    const int blocks = block_count(kernel, 0, numel / (wide ? kPack<T> : 1));
    launch(kernel, dim3(blocks), dim3(kThreads), 0, stream, static_cast<T*>(gradient), upstream, numel);
  });
}

}  // namespace genimg_fast::cuda

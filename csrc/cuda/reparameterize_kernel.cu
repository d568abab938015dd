// SPDX-License-Identifier: MIT
// z = mu + exp(logvar / 2) * eps on CUDA.
//
// Plan: memory bound, 3 element reads and writes forward and 3 backward.  A thread takes 16 bytes at a time, which is
// one Philox block (float32) or two (half types), and draws their eps in registers.
#include "cuda/reparameterize_kernel.h"

#include "cuda/reparameterize.cuh"

namespace genimg_fast::cuda {
namespace {

template <typename T, int N>
__global__ void reparameterize_kernel(const T* mu, const T* logvar, NoiseSeed seed, T* z, int64_t numel) {
  await_previous_kernel();
  const uint64_t key = seed.get();
  for_each_pack<N>(numel, [&](int64_t i, auto pack) {
    auto m = pack.load(mu + i);
    const auto v = pack.load(logvar + i);
    float eps[pack.size];
    draw<pack.size>(key, i, eps);
    for (int k = 0; k < pack.size; ++k)
      m.lane[k] = from_float<T>(reparameterized(to_float(m.lane[k]), to_float(v.lane[k]), eps[k]));
    pack.store(z + i, m);
  });
}

template <typename T, int N>
__global__ void reparameterize_backward_kernel(const T* grad, const T* logvar, NoiseSeed seed, T* grad_logvar,
                                               int64_t numel) {
  await_previous_kernel();
  const uint64_t key = seed.get();
  for_each_pack<N>(numel, [&](int64_t i, auto pack) {
    auto g = pack.load(grad + i);
    const auto v = pack.load(logvar + i);
    float eps[pack.size];
    draw<pack.size>(key, i, eps);
    for (int k = 0; k < pack.size; ++k)
      g.lane[k] = from_float<T>(reparameterized_grad_logvar(to_float(g.lane[k]), to_float(v.lane[k]), eps[k]));
    pack.store(grad_logvar + i, g);
  });
}

}  // namespace

void reparameterize(DType dtype, const void* mu, const void* logvar, NoiseSeed seed, void* z, int64_t numel,
                    Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = is_aligned(mu) && is_aligned(logvar) && is_aligned(z);
    const auto kernel = wide ? reparameterize_kernel<T, kPack<T>> : reparameterize_kernel<T, 1>;
    const int blocks = block_count(kernel, 0, numel / (wide ? kPack<T> : 1));
    launch(kernel, dim3(blocks), dim3(kThreads), 0, stream, static_cast<const T*>(mu), static_cast<const T*>(logvar),
           seed, static_cast<T*>(z), numel);
  });
}

void reparameterize_backward(DType dtype, const void* grad, const void* logvar, NoiseSeed seed, void* grad_logvar,
                             int64_t numel, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = is_aligned(grad) && is_aligned(logvar) && is_aligned(grad_logvar);
    const auto kernel = wide ? reparameterize_backward_kernel<T, kPack<T>> : reparameterize_backward_kernel<T, 1>;
    const int blocks = block_count(kernel, 0, numel / (wide ? kPack<T> : 1));
    launch(kernel, dim3(blocks), dim3(kThreads), 0, stream, static_cast<const T*>(grad), static_cast<const T*>(logvar),
           seed, static_cast<T*>(grad_logvar), numel);
  });
}

}  // namespace genimg_fast::cuda

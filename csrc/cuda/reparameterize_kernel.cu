// SPDX-License-Identifier: MIT
// z = mu + exp(logvar / 2) * eps on CUDA.
//
// Plan: memory bound, 3 element reads and writes forward and 3 backward.  A thread takes 16 bytes at a time, which is
// one Philox block (float32) or two (half types), and draws their eps in registers.  The seed is read from device
// memory, so that a replayed CUDA graph draws new noise.
#include "cuda/reparameterize_kernel.h"

#include "common/philox.h"
#include "cuda/elementwise.cuh"

namespace genimg_fast::cuda {
namespace {

// eps of N consecutive elements from `i` on; i is a multiple of N.
template <int N>
__device__ __forceinline__ void draw(uint64_t seed, int64_t i, float* eps) {
  const uint64_t block = static_cast<uint64_t>(i) / 4;
  if (N >= 4) {
    for (int k = 0; k < N / 4; ++k) philox_normal4(seed, block + k, eps + 4 * k);
    return;
  }
  float four[4];
  philox_normal4(seed, block, four);
  const int k = static_cast<int>(i % 4);
  eps[0] = k == 0 ? four[0] : k == 1 ? four[1] : k == 2 ? four[2] : four[3];  // no indexing: `four` stays in registers
}

template <typename T, int N>
__global__ void reparameterize_kernel(const T* mu, const T* logvar, const int64_t* seed, T* z, int64_t numel) {
  const uint64_t key = static_cast<uint64_t>(seed[0]);
  for_each_pack<N>(numel, [&](int64_t i, auto pack) {
    auto m = pack.load(mu + i);
    const auto v = pack.load(logvar + i);
    float eps[pack.size];
    draw<pack.size>(key, i, eps);
    for (int k = 0; k < pack.size; ++k)
      m.lane[k] = from_float<T>(to_float(m.lane[k]) + expf(0.5f * to_float(v.lane[k])) * eps[k]);
    pack.store(z + i, m);
  });
}

template <typename T, int N>
__global__ void reparameterize_backward_kernel(const T* grad, const T* logvar, const int64_t* seed, T* grad_logvar,
                                               int64_t numel) {
  const uint64_t key = static_cast<uint64_t>(seed[0]);
  for_each_pack<N>(numel, [&](int64_t i, auto pack) {
    auto g = pack.load(grad + i);
    const auto v = pack.load(logvar + i);
    float eps[pack.size];
    draw<pack.size>(key, i, eps);
    for (int k = 0; k < pack.size; ++k)
      g.lane[k] = from_float<T>(to_float(g.lane[k]) * 0.5f * expf(0.5f * to_float(v.lane[k])) * eps[k]);
    pack.store(grad_logvar + i, g);
  });
}

}  // namespace

void reparameterize(DType dtype, const void* mu, const void* logvar, const int64_t* seed, void* z, int64_t numel,
                    Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = is_aligned(mu) && is_aligned(logvar) && is_aligned(z);
    const auto kernel = wide ? reparameterize_kernel<T, kPack<T>> : reparameterize_kernel<T, 1>;
    launch(kernel, dim3(block_count(numel / (wide ? kPack<T> : 1))), dim3(kThreads), 0, stream,
           static_cast<const T*>(mu), static_cast<const T*>(logvar), seed, static_cast<T*>(z), numel);
  });
}

void reparameterize_backward(DType dtype, const void* grad, const void* logvar, const int64_t* seed, void* grad_logvar,
                             int64_t numel, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = is_aligned(grad) && is_aligned(logvar) && is_aligned(grad_logvar);
    const auto kernel = wide ? reparameterize_backward_kernel<T, kPack<T>> : reparameterize_backward_kernel<T, 1>;
    launch(kernel, dim3(block_count(numel / (wide ? kPack<T> : 1))), dim3(kThreads), 0, stream,
           static_cast<const T*>(grad), static_cast<const T*>(logvar), seed, static_cast<T*>(grad_logvar), numel);
  });
}

}  // namespace genimg_fast::cuda

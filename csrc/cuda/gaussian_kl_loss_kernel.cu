// SPDX-License-Identifier: MIT
// KL(N(mu, exp(logvar)) || N(0, I)) on CUDA.
//
// Plan: memory bound.  Each thread takes 16 bytes of mu and of logvar at a time in a grid-stride loop.  Bytes moved:
// elementwise 3 element reads and writes, sum 2, backward 4 (5 with an elementwise upstream gradient).
#include "cuda/gaussian_kl_loss_kernel.h"

#include "cuda/elementwise.cuh"
#include "cuda/reduce.cuh"

namespace genimg_fast::cuda {
namespace {

__device__ __forceinline__ float kl_term(float mu, float logvar) {
  return 0.5f * (mu * mu + expf(logvar) - 1.0f - logvar);
}

template <typename T, int N>
__global__ void kl_kernel(const T* mu, const T* logvar, T* out, int64_t numel) {
  for_each_pack<N>(numel, [&](int64_t i, auto pack) {
    const auto m = pack.load(mu + i), v = pack.load(logvar + i);
    decltype(pack.load(mu)) o;
    for (int k = 0; k < pack.size; ++k) o.lane[k] = from_float<T>(kl_term(to_float(m.lane[k]), to_float(v.lane[k])));
    pack.store(out + i, o);
  });
}

template <typename T, int N>
__global__ void kl_sum_kernel(const T* mu, const T* logvar, float* partial, int64_t numel) {
  GENIMG_FAST_SHARED(float, scratch);  // [kThreads / 32]
  float sum = 0;
  for_each_pack<N>(numel, [&](int64_t i, auto pack) {
    const auto m = pack.load(mu + i), v = pack.load(logvar + i);
    for (int k = 0; k < pack.size; ++k) sum += kl_term(to_float(m.lane[k]), to_float(v.lane[k]));
  });
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <typename T, int N>
__global__ void kl_backward_kernel(const T* grad, bool grad_is_scalar, float scale, const T* mu, const T* logvar,
                                   T* grad_mu, T* grad_logvar, int64_t numel) {
  for_each_pack<N>(numel, [&](int64_t i, auto pack) {
    const auto m = pack.load(mu + i), v = pack.load(logvar + i);
    const auto g = grad_is_scalar ? pack.fill(grad[0]) : pack.load(grad + i);
    decltype(pack.load(mu)) gm, gv;
    for (int k = 0; k < pack.size; ++k) {
      const float upstream = scale * to_float(g.lane[k]);
      gm.lane[k] = from_float<T>(upstream * to_float(m.lane[k]));
      gv.lane[k] = from_float<T>(upstream * 0.5f * (expf(to_float(v.lane[k])) - 1.0f));
    }
    pack.store(grad_mu + i, gm);
    pack.store(grad_logvar + i, gv);
  });
}

}  // namespace

void gaussian_kl(DType dtype, const void* mu, const void* logvar, void* out, int64_t numel, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = is_aligned(mu) && is_aligned(logvar) && is_aligned(out);
    const auto kernel = wide ? kl_kernel<T, kPack<T>> : kl_kernel<T, 1>;
    launch(kernel, dim3(block_count(numel / (wide ? kPack<T> : 1))), dim3(kThreads), 0, stream,
           static_cast<const T*>(mu), static_cast<const T*>(logvar), static_cast<T*>(out), numel);
  });
}

int gaussian_kl_partials(int64_t numel) { return block_count(numel); }

void gaussian_kl_sum(DType dtype, const void* mu, const void* logvar, float* partial, double scale, void* out,
                     int64_t numel, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = is_aligned(mu) && is_aligned(logvar);
    const auto kernel = wide ? kl_sum_kernel<T, kPack<T>> : kl_sum_kernel<T, 1>;
    const int blocks = block_count(numel / (wide ? kPack<T> : 1));
    launch(kernel, dim3(blocks), dim3(kThreads), kThreads / 32 * sizeof(float), stream, static_cast<const T*>(mu),
           static_cast<const T*>(logvar), partial, numel);
    sum_partials(partial, blocks, scale, static_cast<T*>(out), stream);
  });
}

void gaussian_kl_backward(DType dtype, const void* grad, bool grad_is_scalar, double scale, const void* mu,
                          const void* logvar, void* grad_mu, void* grad_logvar, int64_t numel, Stream stream) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool wide = is_aligned(mu) && is_aligned(logvar) && is_aligned(grad_mu) && is_aligned(grad_logvar) &&
                      (grad_is_scalar || is_aligned(grad));
    const auto kernel = wide ? kl_backward_kernel<T, kPack<T>> : kl_backward_kernel<T, 1>;
    launch(kernel, dim3(block_count(numel / (wide ? kPack<T> : 1))), dim3(kThreads), 0, stream,
           static_cast<const T*>(grad), grad_is_scalar, static_cast<float>(scale), static_cast<const T*>(mu),
           static_cast<const T*>(logvar), static_cast<T*>(grad_mu), static_cast<T*>(grad_logvar), numel);
  });
}

}  // namespace genimg_fast::cuda

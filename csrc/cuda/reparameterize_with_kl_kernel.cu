// SPDX-License-Identifier: MIT
// A sample of N(mu, exp(logvar)) and its KL divergence from N(0, I) on CUDA.
//
// Plan: the latents of a batch are small (4096x128: 2 MB each in float32), so launches cost more than bytes, and there
// is one each way.  Forward: as reparameterize's kernel, the divergence summed on the side.  The block that is last to
// leave its partial sum adds them all, in their order, whichever block it is; the count of those that have left starts
// from a memset, so that the kernel may run on several streams and again from a CUDA graph.  Backward: one pass that
// reads the gradient of the divergence from the device and draws eps again.  Bytes moved, in elements: 3 forward (1
// more for a divergence that is not reduced), 5 backward (1 more likewise).
#include "cuda/reparameterize_with_kl_kernel.h"

#include "cuda/gaussian_kl.cuh"
#include "cuda/reduce.cuh"
#include "cuda/reparameterize.cuh"

namespace genimg_fast::cuda {
namespace {

// partial: [gridDim.x].  These three are not used where operands.kl is there.
template <typename T, int N>
__global__ void reparameterize_with_kl_kernel(ReparameterizeWithKlOperands<T> operands, NoiseSeed seed, float* partial,
                                              int* ticket, double scale, T* sum) {
  await_previous_kernel();
  GENIMG_FAST_SHARED(double, lane_sum);  // [kThreads + 1]
  const uint64_t key = seed.get();
  float divergence = 0;
  for_each_pack<N>(operands.numel, [&](int64_t i, auto pack) {
    const auto mu = pack.load(operands.mu + i), logvar = pack.load(operands.logvar + i);
    float eps[pack.size];
    draw<pack.size>(key, i, eps);
    Pack<T, pack.size> z, kl;
    for (int k = 0; k < pack.size; ++k) {
      const float m = to_float(mu.lane[k]), v = to_float(logvar.lane[k]), term = gaussian_kl_term(m, v, expf(v));
      divergence += term;
      z.lane[k] = from_float<T>(reparameterized(m, v, eps[k]));
      kl.lane[k] = from_float<T>(term);
    }
    pack.store(operands.z + i, z);
    if (operands.kl) pack.store(operands.kl + i, kl);
  });
  if (operands.kl) return;
  divergence = block_sum(divergence, reinterpret_cast<float*>(lane_sum));
  if (!is_last_to_leave(divergence, partial, ticket, reinterpret_cast<int*>(lane_sum + kThreads))) return;
  const double total = block_sum_partials(partial, gridDim.x, lane_sum);
  if (threadIdx.x == 0) *sum = from_float<T>(static_cast<float>(scale * total));
}

template <typename T, int N>
__global__ void reparameterize_with_kl_backward_kernel(ReparameterizeWithKlGradients<T> operands, NoiseSeed seed) {
  await_previous_kernel();
  const uint64_t key = seed.get();
  const float kl_scale = static_cast<float>(operands.kl_scale);
  for_each_pack<N>(operands.numel, [&](int64_t i, auto pack) {
    const auto mu = pack.load(operands.mu + i), logvar = pack.load(operands.logvar + i);
    const auto grad_kl = operands.is_reduced ? pack.fill(operands.grad_kl[0]) : pack.load(operands.grad_kl + i);
    Pack<T, pack.size> grad_mu, grad_logvar, grad_z;
    float eps[pack.size];
    if (operands.grad_z) {
      grad_z = pack.load(operands.grad_z + i);
      draw<pack.size>(key, i, eps);
    }
    for (int k = 0; k < pack.size; ++k) {
      const float v = to_float(logvar.lane[k]), upstream = kl_scale * to_float(grad_kl.lane[k]);
      float to_mu = upstream * to_float(mu.lane[k]), to_logvar = upstream * gaussian_kl_grad_logvar(expf(v));
      if (operands.grad_z) {
        const float g = to_float(grad_z.lane[k]);
        to_mu += g;
        to_logvar += reparameterized_grad_logvar(g, v, eps[k]);
      }
      grad_mu.lane[k] = from_float<T>(to_mu);
      grad_logvar.lane[k] = from_float<T>(to_logvar);
    }
    pack.store(operands.grad_mu + i, grad_mu);
    pack.store(operands.grad_logvar + i, grad_logvar);
  });
}

}  // namespace

int reparameterize_with_kl_scratch(int64_t numel) { return most_blocks(numel) + 1; }  // the partials and the ticket

void reparameterize_with_kl(DType dtype, const ReparameterizeWithKlOperands<void>& operands, NoiseSeed seed,
                            float* scratch, double scale, void* sum, Stream stream) {
  const bool wide =
      is_aligned(operands.mu) && is_aligned(operands.logvar) && is_aligned(operands.z) && is_aligned(operands.kl);
  int* ticket = reinterpret_cast<int*>(scratch);
  if (!operands.kl) set_zero(ticket, sizeof *ticket, stream);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const ReparameterizeWithKlOperands<T> typed{static_cast<const T*>(operands.mu),
                                                static_cast<const T*>(operands.logvar), static_cast<T*>(operands.z),
                                                static_cast<T*>(operands.kl), operands.numel};
    const auto kernel = wide ? reparameterize_with_kl_kernel<T, kPack<T>> : reparameterize_with_kl_kernel<T, 1>;
    constexpr size_t kSharedBytes = (kThreads + 1) * sizeof(double);
    const int blocks = block_count(kernel, kSharedBytes, operands.numel / (wide ? kPack<T> : 1));
    launch_after_memset(kernel, dim3(blocks), dim3(kThreads), kSharedBytes, stream, typed, seed, scratch + 1, ticket,
                        scale, static_cast<T*>(sum));
  });
}

void reparameterize_with_kl_backward(DType dtype, const ReparameterizeWithKlGradients<void>& operands, NoiseSeed seed,
                                     Stream stream) {
  const bool wide = is_aligned(operands.mu) && is_aligned(operands.logvar) && is_aligned(operands.grad_z) &&
                    (operands.is_reduced || is_aligned(operands.grad_kl)) && is_aligned(operands.grad_mu) &&
                    is_aligned(operands.grad_logvar);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const ReparameterizeWithKlGradients<T> typed{static_cast<const T*>(operands.mu),
                                                 static_cast<const T*>(operands.logvar),
                                                 static_cast<const T*>(operands.grad_z),
                                                 static_cast<const T*>(operands.grad_kl),
                                                 operands.is_reduced,
                                                 operands.kl_scale,
                                                 static_cast<T*>(operands.grad_mu),
                                                 static_cast<T*>(operands.grad_logvar),
                                                 operands.numel};
    const auto kernel =
        wide ? reparameterize_with_kl_backward_kernel<T, kPack<T>> : reparameterize_with_kl_backward_kernel<T, 1>;
    const int blocks = block_count(kernel, 0, operands.numel / (wide ? kPack<T> : 1));
    launch(kernel, dim3(blocks), dim3(kThreads), 0, stream, typed, seed);
  });
}

}  // namespace genimg_fast::cuda

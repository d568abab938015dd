// SPDX-License-Identifier: MIT
// The divergence of gaussian_kl_loss, elbo_loss and reparameterize_with_kl.
#pragma once
#include "common/gaussian_kl.h"
#include "cuda/elementwise.cuh"

namespace genimg_fast::cuda {

// variance: exp(logvar)
__device__ __forceinline__ float gaussian_kl_term(float mu, float logvar, float variance) {
  return 0.5f * (mu * mu + variance - 1.0f - logvar);
}

// With respect to logvar.  With respect to mu it is mu.
__device__ __forceinline__ float gaussian_kl_grad_logvar(float variance) { return 0.5f * (variance - 1.0f); }

// This thread's part of the loop over the elements: writes losses and gradients where they are wanted, and returns the
// sum of its losses.
template <int N, typename T>
__device__ __forceinline__ float gaussian_kl_terms(const GaussianKlOperands<T, SavedGradient<T>>& operands) {
  const float grad_scale = static_cast<float>(operands.grad_scale);
  float sum = 0;
  for_each_pack<N>(operands.numel, [&](int64_t i, auto pack) {
    constexpr int kSize = decltype(pack)::size;
    const auto mu = pack.load(operands.mu + i), logvar = pack.load(operands.logvar + i);
    Pack<T, kSize> loss;
    Pack<float, kSize> grad_mu, grad_logvar;
    for (int k = 0; k < kSize; ++k) {
      const float m = to_float(mu.lane[k]), v = to_float(logvar.lane[k]), variance = expf(v);
      const float term = gaussian_kl_term(m, v, variance);
      sum += term;
      loss.lane[k] = from_float<T>(term);
      grad_mu.lane[k] = grad_scale * m;
      grad_logvar.lane[k] = grad_scale * gaussian_kl_grad_logvar(variance);
    }
    if (operands.loss) pack.store(operands.loss + i, loss);
    if (operands.grad_mu) {
      pack.store(operands.grad_mu + i, rounded_to<SavedGradient<T>>(grad_mu));
      pack.store(operands.grad_logvar + i, rounded_to<SavedGradient<T>>(grad_logvar));
    }
  });
  return sum;
}

}  // namespace genimg_fast::cuda

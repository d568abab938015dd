// SPDX-License-Identifier: MIT
// z = mu + exp(logvar / 2) * eps of reparameterize and reparameterize_with_kl: one element, and the noise of a pack.
#pragma once
#include "common/philox.h"
#include "cuda/elementwise.cuh"

namespace genimg_fast::cuda {

__device__ __forceinline__ float reparameterized(float mu, float logvar, float eps) {
  return mu + expf(0.5f * logvar) * eps;
}

// With respect to logvar.  With respect to mu it is `grad`.
__device__ __forceinline__ float reparameterized_grad_logvar(float grad, float logvar, float eps) {
  return grad * 0.5f * expf(0.5f * logvar) * eps;
}

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

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast::cpu {

// z[i] = mu[i] + exp(logvar[i] / 2) * eps[i], eps the normal numbers of `seed` (common/philox.h).
template <typename T>
void reparameterize(const T* mu, const T* logvar, uint64_t seed, T* z, int64_t numel);

// grad_logvar[i] = grad[i] * exp(logvar[i] / 2) * eps[i] / 2, eps drawn again.  The gradient of mu is grad.
template <typename T>
void reparameterize_backward(const T* grad, const T* logvar, uint64_t seed, T* grad_logvar, int64_t numel);

// The generator itself, for its tests: counters[4][count] become random words.  Whole vectors take the vector code, the
// rest the scalar code that CUDA uses.
void philox4x32(uint32_t* counters, uint32_t key0, uint32_t key1, int64_t count);

}  // namespace genimg_fast::cpu

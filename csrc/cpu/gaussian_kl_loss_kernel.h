// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast::cpu {

// out[i] = (mu[i]^2 + exp(logvar[i]) - 1 - logvar[i]) / 2
template <typename T>
void gaussian_kl(const T* mu, const T* logvar, T* out, int64_t numel);

// The sum of the same over all elements, in one pass, the same for every number of threads.
template <typename T>
double gaussian_kl_sum(const T* mu, const T* logvar, int64_t numel);

// grad_mu = g * mu, grad_logvar = g * (exp(logvar) - 1) / 2.  g = scale * grad[i], or scale * grad[0] if grad is a
// scalar.
template <typename T>
void gaussian_kl_backward(const T* grad, bool grad_is_scalar, double scale, const T* mu, const T* logvar, T* grad_mu,
                          T* grad_logvar, int64_t numel);

}  // namespace genimg_fast::cpu

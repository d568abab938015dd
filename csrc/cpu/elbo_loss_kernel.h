// SPDX-License-Identifier: MIT
// What the evidence lower bound needs beyond the kernels of bce_loss, bce_with_logits_loss and gaussian_kl_loss.
#pragma once
#include <cstdint>

namespace genimg_fast::cpu {

// The sum of (recon[i] - target[i])^2 in one pass, the same for every number of threads.
// grad[i] = grad_scale * 2 * (recon[i] - target[i]), unless grad is null.
template <typename T>
double squared_error(const T* recon, const T* target, T* grad, double grad_scale, int64_t numel);

}  // namespace genimg_fast::cpu

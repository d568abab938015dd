// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of gaussian_kl_loss share.
#pragma once
#include "common/reduction.h"
#include "ops/tensor.h"

namespace genimg_fast {

inline int64_t batch_size(const Tensor& t) { return t.dim() == 0 ? 1 : t.size(0); }

inline void gaussian_kl_backward_layout(Tensor& grad, Tensor& mu, Tensor& logvar, Reduction reduction) {
  if (reduction == Reduction::none) return make_elementwise(mu, logvar, grad);
  check(grad.numel() == 1, "gaussian_kl_loss_backward: grad must be a scalar under a reduction");
  make_elementwise(mu, logvar);
}

}  // namespace genimg_fast

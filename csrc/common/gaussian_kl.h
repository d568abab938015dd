// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast {

// What KL(N(mu, exp(logvar)) || N(0, I)) reads and writes, `numel` elements each, in the same memory order.  T is the
// element type, or void before the dispatch on it; the gradients may be wider.
template <typename T, typename Grad = T>
struct GaussianKlOperands {
  const T* mu;
  const T* logvar;
  T* loss;            // null: only the sum is wanted
  Grad* grad_mu;      // null: not wanted; else grad_scale * d loss[i] / d mu[i]
  Grad* grad_logvar;  // null together with grad_mu
  double grad_scale;
  int64_t numel;
};

}  // namespace genimg_fast

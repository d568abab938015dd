// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast {

// What reparameterize_with_kl reads and writes, `numel` elements each in logical order.  T is the element type, or void
// before the dispatch on it.
template <typename T>
struct ReparameterizeWithKlOperands {
  const T* mu;
  const T* logvar;
  T* z;
  T* kl;  // null: only the sum is wanted
  int64_t numel;
};

// The same of its gradient.
template <typename T>
struct ReparameterizeWithKlGradients {
  const T* mu;
  const T* logvar;
  const T* grad_z;   // null: z was not used
  const T* grad_kl;  // of the reduced divergence one element, else numel
  bool is_reduced;
  double kl_scale;  // of the reduction
  T* grad_mu;
  T* grad_logvar;
  int64_t numel;
};

}  // namespace genimg_fast

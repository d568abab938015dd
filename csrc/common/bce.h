// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast {

// What binary cross-entropy reads and writes, `numel` elements each, in the same memory order.  T is the element type,
// or void before the dispatch on it; the gradient may be wider.
template <typename T, typename Grad = T>
struct BceOperands {
  const T* input;
  const T* target;
  const T* weight;      // null: 1
  const T* pos_weight;  // null: 1; bce_with_logits_loss alone has one
  T* loss;              // null: only the sum is wanted
  Grad* grad;           // null: not wanted; else grad_scale * d loss[i] / d input[i]
  double grad_scale;
  int64_t numel;
};

// Which of bce_loss's operands hold values outside [0, 1], NaN included.
struct BceOutside {
  bool input = false, target = false;
};

}  // namespace genimg_fast

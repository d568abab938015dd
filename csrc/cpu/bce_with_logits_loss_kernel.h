// SPDX-License-Identifier: MIT
#pragma once
#include "common/bce.h"

namespace genimg_fast::cpu {

// The sum over i of
//     loss[i] = -weight[i] * (pos_weight[i] * target[i] * log(s) + (1 - target[i]) * log(1 - s)), s = sigmoid(input[i])
// in one pass, the same for every number of threads.
template <typename T>
double bce_with_logits_loss(const BceOperands<T>& operands);

}  // namespace genimg_fast::cpu

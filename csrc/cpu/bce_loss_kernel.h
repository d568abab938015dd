// SPDX-License-Identifier: MIT
#pragma once
#include "common/bce.h"

namespace genimg_fast::cpu {

// The sum over i of
//     loss[i] = -weight[i] * (target[i] * log(input[i]) + (1 - target[i]) * log(1 - input[i]))
// with logarithms no less than -100, in one pass, the same for every number of threads.
template <typename T>
double bce_loss(const BceOperands<T>& operands, BceOutside* outside);

}  // namespace genimg_fast::cpu

// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

#include "common/activation.h"

namespace genimg_fast::cpu {

// The gradient before an activation from the one after it and the activation's output, which tells for each of them on
// which branch, or how steep, it was.  negative_slope must not be negative.  grad_input may be grad.
template <typename T>
void activation_backward(const T* grad, const T* output, int64_t numel, Activation activation, T negative_slope,
                         T* grad_input);

}  // namespace genimg_fast::cpu

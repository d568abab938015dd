// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast {

// The numbers are those of RECONSTRUCTIONS in genimg_fast/ops/_check.py.
enum class Reconstruction : int64_t { bce_with_logits = 0, bce = 1, mse = 2 };

}  // namespace genimg_fast

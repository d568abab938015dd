// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast {

// The numbers are torch's own for the first three, so that the Python side passes them as they are.
enum class Reduction : int64_t { none = 0, mean = 1, sum = 2, batchmean = 3 };

// What a sum over all elements is multiplied with.  `batch` is the size of dimension 0.  An empty mean is 0 * inf =
// NaN, as in torch.
inline double reduction_scale(Reduction reduction, int64_t numel, int64_t batch) {
  switch (reduction) {
    case Reduction::mean:
      return 1.0 / static_cast<double>(numel);
    case Reduction::batchmean:
      return 1.0 / static_cast<double>(batch);
    default:
      return 1.0;
  }
}

}  // namespace genimg_fast

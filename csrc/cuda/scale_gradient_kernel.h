// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// gradient *= *upstream, both on the GPU.
void scale_gradient(float* gradient, const float* upstream, int64_t numel, Stream stream);

}  // namespace genimg_fast::cuda

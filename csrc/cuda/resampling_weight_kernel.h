// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// weight [out_channels][in_channels][3][3] -> resampling [in_channels][out_channels][4][4] or, where it `pools`,
// [out_channels][in_channels][4][4], aligned to 16 bytes.
void resampling_weight(DType dtype, const void* weight, int64_t out_channels, int64_t in_channels, bool pools,
                       void* resampling, Stream stream);

// From the gradient of `resampling`, aligned to 16 bytes, to that of `weight`.
void resampling_weight_grad(DType dtype, const void* grad, int64_t out_channels, int64_t in_channels, bool pools,
                            void* grad_weight, Stream stream);

}  // namespace genimg_fast::cuda

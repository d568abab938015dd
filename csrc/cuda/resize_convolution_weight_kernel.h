// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// weight [out_channels][in_channels][3][3] -> transposed [in_channels][out_channels][4][4], aligned to 16 bytes.
void resize_convolution_weight(DType dtype, const void* weight, int64_t out_channels, int64_t in_channels,
                               void* transposed, Stream stream);

// From the gradient of `transposed`, aligned to 16 bytes, to that of `weight`.
void resize_convolution_weight_grad(DType dtype, const void* grad, int64_t out_channels, int64_t in_channels,
                                    void* grad_weight, Stream stream);

}  // namespace genimg_fast::cuda

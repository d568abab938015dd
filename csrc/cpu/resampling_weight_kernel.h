// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast::cpu {

// weight [out_channels][in_channels][3][3] -> resampling [in_channels][out_channels][4][4], that of the transposed
// convolution which it is after an upsampling; or where it `pools` [out_channels][in_channels][4][4], that of the
// convolution which it is before a mean.
template <typename T>
void resampling_weight(const T* weight, int64_t out_channels, int64_t in_channels, bool pools, T* resampling);

// Its transpose, which leads from the gradient of `resampling` to that of `weight`.
template <typename T>
void resampling_weight_grad(const T* grad, int64_t out_channels, int64_t in_channels, bool pools, T* grad_weight);

}  // namespace genimg_fast::cpu

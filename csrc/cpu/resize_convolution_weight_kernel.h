// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

namespace genimg_fast::cpu {

// weight [out_channels][in_channels][3][3] -> transposed [in_channels][out_channels][4][4], each tap of which is the
// sum of the taps that meet the same pixel of an image whose rows and columns were doubled.
template <typename T>
void resize_convolution_weight(const T* weight, int64_t out_channels, int64_t in_channels, T* transposed);

// Its transpose, which leads from the gradient of `transposed` to that of `weight`.
template <typename T>
void resize_convolution_weight_grad(const T* grad, int64_t out_channels, int64_t in_channels, T* grad_weight);

}  // namespace genimg_fast::cpu

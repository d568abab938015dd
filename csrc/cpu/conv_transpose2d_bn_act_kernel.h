// SPDX-License-Identifier: MIT
#pragma once
#include "common/deconvolution.h"

namespace genimg_fast::cpu {

// What happens to a sum before it is stored: activation(sum * scale[channel] + shift[channel]).
template <typename T>
struct Epilogue {
  const T *scale, *shift;  // [Cout]
  Activation activation;
  T negative_slope;
};

// Transposed convolution with the epilogue fused, on channels_last memory.
//   input   [N, H, W, Cin]
//   weight  [Cin, Cout, kH, kW]
//   output  [N, H', W', Cout]
// If mean and var are not null they receive, per output channel, the mean and the biased variance of the values stored,
// gathered while those are still in registers.
template <typename T>
void conv_transpose2d(const Deconvolution& conv, const T* input, const T* weight, const Epilogue<T>& epilogue,
                      T* output, T* mean, T* var);

}  // namespace genimg_fast::cpu

// SPDX-License-Identifier: MIT
#pragma once
#include "common/convolution.h"
#include "cpu/convolution_variant.h"

namespace genimg_fast::cpu {

// The gradient of a convolution's weight.  `conv` leads from large [N, H, W, Cin] to small [N, H', W', Cout]:
//
//   grad_weight[o][i][ky][kx] = sum over n, y, x of small[n][y][x][o] * large[n][Y][X][i]
//   Y = y * stride - padding + ky * dilation, and X likewise
//
//   Conv2d           large is its input, small the gradient of its output; grad_weight is [Cout, Cin, kH, kW]
//   ConvTranspose2d  small is its input, large the gradient of its output; grad_weight is [Cin, Cout, kH, kW] of that
//                    layer, the same memory
//
// The prologue of whichever of the two is the layer's input says how that was made of what is stored; padding stays 0.
template <typename T>
void conv_weight_grad(const Convolution& conv, const T* small, const Prologue<T>& small_prologue, const T* large,
                      const Prologue<T>& large_prologue, T* grad_weight);

}  // namespace genimg_fast::cpu

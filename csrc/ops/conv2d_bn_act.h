// SPDX-License-Identifier: MIT
// The geometry of a conv2d_bn_act, checked.
#pragma once
#include "common/convolution.h"
#include "ops/convolution.h"

namespace genimg_fast {

// Of the sizes of input and weight.
inline Convolution convolution(const std::vector<int64_t>& input, const std::vector<int64_t>& weight,
                               const Pair& stride, const Pair& padding, const Pair& dilation) {
  check(input.size() == 4 && weight.size() == 4 && input[1] == weight[1],
        "conv2d_bn_act: input must be [N, Cin, H, W] and weight [Cout, Cin, kH, kW]");
  check(weight[0] > 0 && weight[1] > 0, "conv2d_bn_act: weight has no channels");
  check(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2 && stride[0] > 0 && stride[1] > 0 &&
            padding[0] >= 0 && padding[1] >= 0 && dilation[0] > 0 && dilation[1] > 0 && weight[2] > 0 && weight[3] > 0,
        "conv2d_bn_act: stride, padding and dilation must be pairs, and the kernel not empty");
  auto axis = [&](int64_t d) {
    return ConvolutionAxis::make(input[d + 2], weight[d + 2], stride[d], padding[d], dilation[d]);
  };
  // The division that counts outputs rounds towards zero: a kernel larger than the padded input is told beforehand.
  auto fits = [&](int64_t d) { return input[d + 2] + 2 * padding[d] > dilation[d] * (weight[d + 2] - 1); };
  check(fits(0) && fits(1), "conv2d_bn_act: the kernel is larger than the padded input");
  return {input[0], input[1], weight[0], axis(0), axis(1)};
}

inline Convolution convolution(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
                               const Pair& dilation) {
  check(input.scalar_type() == weight.scalar_type(), "conv2d_bn_act: input and weight differ in dtype");
  return convolution(sizes_of(input), sizes_of(weight), stride, padding, dilation);
}

}  // namespace genimg_fast

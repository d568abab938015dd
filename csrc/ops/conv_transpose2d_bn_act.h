// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of conv_transpose2d_bn_act share.
#pragma once
#include "common/deconvolution.h"
#include "ops/convolution.h"

namespace genimg_fast {

// Of the sizes of input and weight.
inline Deconvolution deconvolution(const std::vector<int64_t>& input, const std::vector<int64_t>& weight,
                                   const Pair& stride, const Pair& padding, const Pair& output_padding) {
  check(input.size() == 4 && weight.size() == 4 && input[1] == weight[0],
        "conv_transpose2d_bn_act: input must be [N, Cin, H, W] and weight [Cin, Cout, kH, kW]");
  check(weight[0] > 0 && weight[1] > 0 && weight[2] > 0 && weight[3] > 0,
        "conv_transpose2d_bn_act: weight has no elements");
  check(stride.size() == 2 && padding.size() == 2 && output_padding.size() == 2 && stride[0] > 0 && stride[1] > 0 &&
            padding[0] >= 0 && padding[1] >= 0,
        "conv_transpose2d_bn_act: stride, padding and output_padding must be pairs");
  const Deconvolution conv{input[0], input[1], weight[1],
                           DeconvolutionAxis::make(input[2], weight[2], stride[0], padding[0], output_padding[0]),
                           DeconvolutionAxis::make(input[3], weight[3], stride[1], padding[1], output_padding[1])};
  check(conv.y.output > 0 && conv.x.output > 0, "conv_transpose2d_bn_act: the output would be empty");
  return conv;
}

inline Deconvolution deconvolution(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
                                   const Pair& output_padding) {
  check(input.scalar_type() == weight.scalar_type(), "conv_transpose2d_bn_act: input and weight differ in dtype");
  return deconvolution(sizes_of(input), sizes_of(weight), stride, padding, output_padding);
}

}  // namespace genimg_fast

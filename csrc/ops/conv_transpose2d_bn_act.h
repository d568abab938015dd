// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of conv_transpose2d_bn_act share.
#pragma once
#include "common/deconvolution.h"
#include "ops/convolution.h"

namespace genimg_fast {

inline Deconvolution deconvolution(const Tensor& input, const Tensor& weight, const std::vector<int64_t>& stride,
                                   const std::vector<int64_t>& padding, const std::vector<int64_t>& output_padding) {
  check(input.dim() == 4 && weight.dim() == 4 && input.size(1) == weight.size(0),
        "conv_transpose2d_bn_act: input must be [N, Cin, H, W] and weight [Cin, Cout, kH, kW]");
  check(input.scalar_type() == weight.scalar_type(), "conv_transpose2d_bn_act: input and weight differ in dtype");
  check(stride.size() == 2 && padding.size() == 2 && output_padding.size() == 2 && stride[0] > 0 && stride[1] > 0 &&
            padding[0] >= 0 && padding[1] >= 0,
        "conv_transpose2d_bn_act: stride, padding and output_padding must be pairs");
  const Deconvolution conv{
      input.size(0), input.size(1), weight.size(1),
      DeconvolutionAxis::make(input.size(2), weight.size(2), stride[0], padding[0], output_padding[0]),
      DeconvolutionAxis::make(input.size(3), weight.size(3), stride[1], padding[1], output_padding[1])};
  check(conv.y.output > 0 && conv.x.output > 0, "conv_transpose2d_bn_act: the output would be empty");
  return conv;
}

}  // namespace genimg_fast

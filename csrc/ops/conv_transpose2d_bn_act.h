// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of conv_transpose2d_bn_act share.
#pragma once
#include "common/deconvolution.h"
#include "ops/tensor.h"

namespace genimg_fast {

using torch::headeronly::MemoryFormat;

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

template <typename... Optionals>
void check_channels(int64_t channels, ScalarType dtype, const Optionals&... tensors) {
  auto fits = [&](const OptionalTensor& t) {
    return !t || (t->numel() == channels && t->is_contiguous() && t->scalar_type() == dtype);
  };
  check((fits(tensors) && ...),
        "conv_transpose2d_bn_act: a per-channel tensor must be contiguous, hold Cout values and be ",
        "of input's dtype (of float32 on CUDA)");
}

// Memory order N, H, W, C by its strides, which tell even where sizes of 1 leave both orders possible (as for torch).
inline bool is_channels_last(const Tensor& t) {
  return t.size(1) > 1 && t.stride(1) == 1 && t.stride(3) == t.size(1) && t.stride(2) == t.size(1) * t.size(3);
}

inline std::vector<int64_t> output_sizes(const Deconvolution& conv) {
  return {conv.batch, conv.out_channels, conv.y.output, conv.x.output};
}

inline Tensor new_channels_last(const Tensor& like, const Deconvolution& conv) {
  return torch::stable::empty(output_sizes(conv), like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

}  // namespace genimg_fast

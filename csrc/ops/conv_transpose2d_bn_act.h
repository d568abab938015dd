// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of conv_transpose2d_bn_act share.
#pragma once
#include <cmath>

#include "common/deconvolution.h"
#include "ops/tensor.h"

namespace genimg_fast {

using torch::headeronly::MemoryFormat;
using Pair = std::vector<int64_t>;

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

// Of the sizes of input and weight.
inline Deconvolution deconvolution(const std::vector<int64_t>& input, const std::vector<int64_t>& weight,
                                   const Pair& stride, const Pair& padding, const Pair& output_padding) {
  check(input.size() == 4 && weight.size() == 4 && input[1] == weight[0],
        "conv_transpose2d_bn_act: input must be [N, Cin, H, W] and weight [Cin, Cout, kH, kW]");
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

template <typename... Optionals>
void check_channels(int64_t channels, ScalarType dtype, const Optionals&... tensors) {
  auto fits = [&](const OptionalTensor& t) {
    return !t || (t->numel() == channels && t->is_contiguous() && t->scalar_type() == dtype);
  };
  check((fits(tensors) && ...),
        "conv_transpose2d_bn_act: a per-channel tensor must be contiguous, hold Cout values and be ",
        "of input's dtype (of float32 on CUDA)");
}

// Bias and fixed normalisation as one scale and shift a channel, for an epilogue.
template <typename T>
void fold_affine(const ChannelAffine<T>& affine, int64_t channels, std::vector<T>& scale, std::vector<T>& shift) {
  scale.resize(channels);
  shift.resize(channels);
  for (int64_t c = 0; c < channels; ++c) {
    double channel_scale, channel_shift;
    affine.at(c, &channel_scale, &channel_shift);
    scale[c] = static_cast<T>(channel_scale);
    shift[c] = static_cast<T>(channel_shift);
  }
}

// Memory order N, H, W, C by its strides, which tell even where sizes of 1 leave both orders possible (as for torch).
inline bool is_channels_last(const Tensor& t) {
  return t.size(1) > 1 && t.stride(1) == 1 && t.stride(3) == t.size(1) && t.stride(2) == t.size(1) * t.size(3);
}

inline std::vector<int64_t> output_sizes(const Deconvolution& conv) {
  return {conv.batch, conv.out_channels, conv.y.output, conv.x.output};
}

inline Tensor new_channels_last(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

}  // namespace genimg_fast

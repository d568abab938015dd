// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/conv_transpose2d_bn_act_kernel.h"

namespace {

using namespace genimg_fast;

// Strides of [n, c, y, x] in either memory order.
cuda::ImageStrides strides(bool channels_last, int64_t c, int64_t y, int64_t x) {
  return channels_last ? cuda::ImageStrides{c * y * x, 1, x * c, c} : cuda::ImageStrides{c * y * x, y * x, x, 1};
}

void conv_transpose2d(cuda::DType dtype, int64_t n, int64_t in_channels, int64_t out_channels, int64_t height,
                      int64_t width, int64_t kernel, int64_t stride, int64_t padding, int64_t output_padding,
                      bool channels_last, const void* input, const void* weight, cuda::ChannelVector bias,
                      cuda::ChannelVector mean, cuda::ChannelVector var, cuda::ChannelVector bn_weight,
                      cuda::ChannelVector bn_bias, double eps, int64_t activation, float negative_slope, void* output) {
  const Deconvolution conv{n, in_channels, out_channels,
                           DeconvolutionAxis::make(height, kernel, stride, padding, output_padding),
                           DeconvolutionAxis::make(width, kernel, stride, padding, output_padding)};
  cuda::conv_transpose2d(dtype, conv, input, strides(channels_last, in_channels, height, width), weight,
                         {bias, mean, var, bn_weight, bn_bias, eps}, static_cast<Activation>(activation),
                         negative_slope, output, strides(channels_last, out_channels, conv.y.output, conv.x.output),
                         nullptr);
}

}  // namespace

CUDA_ON_CPU_BINDINGS { cuda_on_cpu::bind("conv_transpose2d", &conv_transpose2d); }

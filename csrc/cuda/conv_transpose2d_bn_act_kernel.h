// SPDX-License-Identifier: MIT
#pragma once
#include "common/deconvolution.h"
#include "cuda/channel_vector.h"

namespace genimg_fast::cuda {

// Element strides of an image tensor in either memory order.
struct ImageStrides {
  int64_t n, c, y, x;
};

// Transposed convolution with the epilogue fused; the semantics of cpu/conv_transpose2d_bn_act_kernel.h without the
// statistics.  weight is [Cin, Cout, kH, kW] of `dtype`; all sums are float.
void conv_transpose2d(DType dtype, const Deconvolution& conv, const void* input, ImageStrides input_strides,
                      const void* weight, const ChannelAffine& affine, Activation activation, float negative_slope,
                      void* output, ImageStrides output_strides, Stream stream);

}  // namespace genimg_fast::cuda

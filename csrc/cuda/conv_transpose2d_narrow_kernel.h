// SPDX-License-Identifier: MIT
#pragma once
#include "common/channel_layout.h"
#include "cuda/convolution_tensor_core_kernel.h"

namespace genimg_fast::cuda {

// Why the kernel cannot take a transposed convolution, or null.
const char* why_not_narrow(DType dtype, const Deconvolution& conv);

// The weight as this kernel reads it: packed[tap][out_channels][in_channels, filled to a whole number of steps].
int64_t narrow_packed_numel(DType dtype, const Deconvolution& conv);
void narrow_pack_weight(DType dtype, const Deconvolution& conv, const void* weight, const WeightStrides& strides,
                        void* packed, Stream stream);

// As convolution_tensor_core, for few output channels: those of all taps together are the columns of one product.  The
// output is written in either order.
void conv_transpose2d_narrow(DType dtype, const Deconvolution& conv, const void* input, const void* packed,
                             const ChannelAffine& affine, Activation activation, float negative_slope, void* output,
                             MemoryOrder order, Stream stream);

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/convolution_tensor_core_kernel.h"

namespace genimg_fast::cuda {

// Why the kernel cannot take a convolution of such values, or null.  Tensors and packed weight as for
// convolution_tensor_core.
const char* why_not_wgmma(DType dtype, const PhasedConvolution& conv);

// Whether the current GPU has the instructions and this library was compiled for them.
bool wgmma_is_available();

enum class WgmmaTileChoice : int64_t { m128n128 = 0, m256n64 = 1, m128n64 = 2 };
constexpr int64_t kWgmmaTileChoices = 3;

// As choose_tile.
WgmmaTileChoice choose_wgmma_tile(const PhasedConvolution& conv, int multiprocessors);
WgmmaTileChoice choose_wgmma_tile(const PhasedConvolution& conv);

// Rows of Moments<float>[out_channels] that the kernel leaves where statistics are asked for.
int64_t wgmma_statistics_splits(const PhasedConvolution& conv, WgmmaTileChoice tile);

// As convolution_tensor_core, for half types.
void convolution_wgmma(DType dtype, const PhasedConvolution& conv, WgmmaTileChoice tile, const void* input,
                       const void* packed, const ChannelAffine& affine, Activation activation, float negative_slope,
                       void* output, float* moments, Stream stream);

}  // namespace genimg_fast::cuda

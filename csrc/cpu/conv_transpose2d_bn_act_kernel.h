// SPDX-License-Identifier: MIT
#pragma once
#include "common/deconvolution.h"
#include "cpu/isa.h"

namespace genimg_fast::cpu {

// What happens to a sum before it is stored: activation(sum * scale[channel] + shift[channel]).
template <typename T>
struct Epilogue {
  const T *scale, *shift;  // [Cout]
  Activation activation;
  T negative_slope;
};

// The ways to compute a transposed convolution.  Toom-Cook serves kernel 4, stride 2, padding 1 in float alone; a
// number is the edge of its input tiles.  The numbers are those of VARIANTS in genimg_fast/backends/cpu.py.
enum class Variant : int64_t { automatic = 0, direct = 1, toom_cook_2 = 2, toom_cook_4 = 3, narrow = 4 };

// Process-wide settings.  A forced variant that cannot compute a shape gives way to direct.
void force_variant(Variant);
Variant forced_variant();
void allow_winograd(bool);
bool winograd_allowed();

// What a packed weight is.  It serves any batch and image size on the instruction set that it was packed for, but for
// direct, which packs differently where the input is one row or one column (DeconvolutionAxis::make).
struct PackedLayout {
  Variant variant;
  Isa isa;
  int64_t count;  // elements
};

// The layout that suits this convolution best.  A weight that is packed for one call alone pays for its packing.
template <typename T>
PackedLayout choose_layout(const Deconvolution& conv, bool packed_once);

// weight [Cin, Cout, kH, kW] -> packed [layout.count]
template <typename T>
void pack_weight(const Deconvolution& conv, const PackedLayout& layout, const T* weight, T* packed);

// Transposed convolution with the epilogue fused, on channels_last memory.
//   input   [N, H, W, Cin]
//   packed  from pack_weight, aligned to 64 bytes
//   output  [N, H', W', Cout]
// If mean and var are not null they receive, per output channel, the mean and the biased variance of the values stored,
// gathered while those are still in registers.
template <typename T>
void conv_transpose2d(const Deconvolution& conv, const T* input, const PackedLayout& layout, const T* packed,
                      const Epilogue<T>& epilogue, T* output, T* mean, T* var);

// The same with a weight packed for this call.
template <typename T>
void conv_transpose2d(const Deconvolution& conv, const T* input, const T* weight, const Epilogue<T>& epilogue,
                      T* output, T* mean, T* var);

}  // namespace genimg_fast::cpu

// SPDX-License-Identifier: MIT
#pragma once
#include "common/deconvolution.h"
#include "cpu/convolution_variant.h"

namespace genimg_fast::cpu {

// The layout that suits this convolution best.  A weight that is packed for one call alone pays for its packing.
template <typename T>
PackedLayout choose_layout(const Deconvolution& conv, bool packed_once);
// That of a variant, or of the direct one where the variant cannot compute this convolution.
template <typename T>
PackedLayout layout_of_variant(const Deconvolution& conv, Variant variant);

// weight [Cin, Cout, kH, kW] -> packed [layout.count]
template <typename T>
void pack_weight(const Deconvolution& conv, const PackedLayout& layout, const T* weight, T* packed);

// Whether outputs of this layout can be written in another order than channels_last.
inline bool writes_nchw(const PackedLayout& layout) { return layout.variant == Variant::narrow; }

// Transposed convolution with prologue and epilogue fused, on channels_last memory.
//   input   [N, H, W, Cin]
//   packed  from pack_weight, aligned to 64 bytes
//   output  [N, H', W', Cout], or in the given order if writes_nchw(layout)
// If mean and var are not null they receive, per output channel, the mean and the biased variance of the values stored,
// gathered while those are still in registers.
template <typename T>
void conv_transpose2d(const Deconvolution& conv, const T* input, const Prologue<T>& prologue,
                      const PackedLayout& layout, const T* packed, const Epilogue<T>& epilogue, T* output, T* mean,
                      T* var, MemoryOrder order = MemoryOrder::channels_last);

}  // namespace genimg_fast::cpu

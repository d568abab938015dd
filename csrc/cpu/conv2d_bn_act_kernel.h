// SPDX-License-Identifier: MIT
#pragma once
#include "common/convolution.h"
#include "cpu/convolution_variant.h"

namespace genimg_fast::cpu {

// How a weight lies in memory.
//   forward   [Cout, Cin, kH, kW], as of Conv2d.  The gradient of a ConvTranspose2d with respect to its input is the
//             Conv2d with the same weight.
//   mirrored  [Cin, Cout, kH, kW], and the taps run backwards: with it a convolution of stride 1 computes the gradient
//             of the Conv2d that has this weight.
enum class WeightOrder { forward, mirrored };

// The layout that suits this convolution best.  A weight that is packed for one call alone pays for its packing.
template <typename T>
PackedLayout choose_layout(const Convolution& conv, bool packed_once, WeightOrder order = WeightOrder::forward);
// That of a variant, or of the direct one where the variant cannot compute this convolution.
template <typename T>
PackedLayout layout_of_variant(const Convolution& conv, Variant variant);

// weight -> packed [layout.count]
template <typename T>
void pack_weight(const Convolution& conv, const PackedLayout& layout, WeightOrder order, const T* weight, T* packed);

// Convolution with prologue and epilogue fused, on channels_last memory.
//   input   [N, H, W, Cin]
//   packed  from pack_weight, aligned to 64 bytes
//   output  [N, H', W', Cout]
// If mean and var are not null they receive, per output channel, the mean and the biased variance of the values stored,
// gathered while those are still in registers.
template <typename T>
void conv2d(const Convolution& conv, const T* input, const Prologue<T>& prologue, const PackedLayout& layout,
            const T* packed, const Epilogue<T>& epilogue, T* output, T* mean, T* var);

}  // namespace genimg_fast::cpu

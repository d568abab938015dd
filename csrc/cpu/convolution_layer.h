// SPDX-License-Identifier: MIT
// A convolution, plain or transposed, with its two gradients: which kernel computes which.
#pragma once
#include "common/convolution.h"
#include "cpu/convolution_variant.h"

namespace genimg_fast::cpu {

// All images are channels_last, [N, H, W, C].
struct ConvolutionLayer {
  bool transposed;
  Deconvolution up;  // of a transposed convolution, or the adjoint of a plain one (where dilation is 1)
  Convolution down;  // of a plain convolution, or the adjoint of a transposed one

  explicit ConvolutionLayer(const Deconvolution& conv) : transposed(true), up(conv), down(adjoint(conv)) {}
  explicit ConvolutionLayer(const Convolution& conv) : transposed(false), up(adjoint(conv)), down(conv) {}

  int64_t in_channels() const { return transposed ? up.in_channels : down.in_channels; }
  int64_t out_channels() const { return transposed ? up.out_channels : down.out_channels; }
};

// input -> output, and the statistics of each output channel if mean and var are not null.
template <typename T>
PackedLayout choose_layout(const ConvolutionLayer& layer, bool packed_once);
template <typename T>
PackedLayout layout_of_variant(const ConvolutionLayer& layer, Variant variant);
template <typename T>
void pack_weight(const ConvolutionLayer& layer, const PackedLayout& layout, const T* weight, T* packed);
// The same for one call: in memory that holds until the thread packs the next, or where the weight lies.
template <typename T>
const T* pack_weight_once(const ConvolutionLayer& layer, const PackedLayout& layout, const T* weight);
template <typename T>
void convolution(const ConvolutionLayer& layer, const T* input, const Prologue<T>& prologue, const PackedLayout& layout,
                 const T* packed, const Epilogue<T>& epilogue, T* output, T* mean, T* var,
                 MemoryOrder order = MemoryOrder::channels_last);
bool writes_nchw(const ConvolutionLayer& layer, const PackedLayout& layout);

// grad of the output -> grad of what the prologue made of the input.  A plain convolution with dilation must have
// stride 1 and no more padding than its kernel reaches.
template <typename T>
void convolution_input_grad(const ConvolutionLayer& layer, const T* grad, const T* weight, T* grad_input);

template <typename T>
void convolution_weight_grad(const ConvolutionLayer& layer, const T* grad, const T* input, const Prologue<T>& prologue,
                             T* grad_weight);

}  // namespace genimg_fast::cpu

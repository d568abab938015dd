// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of resize_convolution_weight share.
#pragma once
#include "ops/convolution.h"

namespace genimg_fast {

// The tensors of one call of it or, backward, of its transpose.
struct ResizeWeightCall {
  ResizeWeightCall(const Tensor& from_, bool backward) : from(from_) {
    const int64_t taps = backward ? 4 : 3;
    check(from.dim() == 4 && from.size(2) == taps && from.size(3) == taps,
          backward ? "resize_convolution_weight_grad: grad must be [Cin, Cout, 4, 4]"
                   : "resize_convolution_weight: weight must be [Cout, Cin, 3, 3]");
    from = to_contiguous(from);
    out_channels = from.size(backward), in_channels = from.size(!backward);
    to = torch::stable::new_empty(from, {from.size(1), from.size(0), 7 - taps, 7 - taps});
  }

  Tensor from, to;
  int64_t out_channels, in_channels;
};

}  // namespace genimg_fast

// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of resampling_weight share.
#pragma once
#include "ops/convolution.h"

namespace genimg_fast {

// The tensors of one call of it or, backward, of its transpose.
struct ResamplingWeightCall {
  ResamplingWeightCall(const Tensor& from_, bool pools_, bool backward) : from(from_), pools(pools_) {
    const int64_t taps = backward ? 4 : 3;
    check(from.dim() == 4 && from.size(2) == taps && from.size(3) == taps,
          !backward ? "resampling_weight: weight must be [Cout, Cin, 3, 3]"
          : pools   ? "resampling_weight_grad: grad must be [Cout, Cin, 4, 4]"
                    : "resampling_weight_grad: grad must be [Cin, Cout, 4, 4]");
    from = to_contiguous(from);
    const bool turns = !pools;  // the order of the channels
    out_channels = from.size(backward && turns), in_channels = from.size(!(backward && turns));
    to = torch::stable::new_empty(from, {from.size(turns), from.size(!turns), 7 - taps, 7 - taps});
  }

  Tensor from, to;
  bool pools;
  int64_t out_channels, in_channels;
};

}  // namespace genimg_fast

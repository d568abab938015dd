// SPDX-License-Identifier: MIT
// Binary cross-entropy of logits on CUDA; the plan is in bce.cuh.
#include "cuda/bce_with_logits_loss_kernel.h"

#include "cuda/bce.cuh"

namespace genimg_fast::cuda {

int bce_with_logits_partials(int64_t numel) { return most_blocks(numel); }

void bce_with_logits_loss(LossDTypes dtypes, const BceOperands<void>& operands, float* partial, double scale, void* sum,
                          Stream stream) {
  bce<BceWithLogits>(dtypes, operands, partial, scale, sum, stream);
}

}  // namespace genimg_fast::cuda

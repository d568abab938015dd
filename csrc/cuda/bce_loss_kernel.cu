// SPDX-License-Identifier: MIT
// Binary cross-entropy of probabilities on CUDA; the plan is in bce.cuh.
#include "cuda/bce_loss_kernel.h"

#include "cuda/bce.cuh"

namespace genimg_fast::cuda {

int bce_partials(int64_t numel) { return most_blocks(numel); }

void bce_loss(LossDTypes dtypes, const BceOperands<void>& operands, float* partial, double scale, void* sum,
              Stream stream) {
  bce<Bce>(dtypes, operands, partial, scale, sum, stream);
}

}  // namespace genimg_fast::cuda

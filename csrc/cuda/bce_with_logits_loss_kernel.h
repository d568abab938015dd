// SPDX-License-Identifier: MIT
#pragma once
#include "common/bce.h"
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// As the CPU's (cpu/bce_with_logits_loss_kernel.h).  sum[0] = scale * sum over i of loss[i], unless sum is null.
// partial: bce_with_logits_partials(numel) floats of scratch.
int bce_with_logits_partials(int64_t numel);
void bce_with_logits_loss(LossDTypes dtypes, const BceOperands<void>& operands, float* partial, double scale, void* sum,
                          Stream stream);

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#pragma once
#include "common/bce.h"
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// As the CPU's (cpu/bce_loss_kernel.h), but an input outside [0, 1] makes the loss NaN: to report it would need the
// host. sum[0] = scale * sum over i of loss[i], unless sum is null.  partial: bce_partials(numel) floats of scratch.
int bce_partials(int64_t numel);
void bce_loss(LossDTypes dtypes, const BceOperands<void>& operands, float* partial, double scale, void* sum,
              Stream stream);

}  // namespace genimg_fast::cuda

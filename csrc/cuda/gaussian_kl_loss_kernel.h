// SPDX-License-Identifier: MIT
#pragma once
#include "common/gaussian_kl.h"
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// loss[i] = (mu[i]^2 + exp(logvar[i]) - 1 - logvar[i]) / 2 and, unless `sum` is null, sum[0] = scale * their sum.
// partial: gaussian_kl_partials(numel) floats of scratch.
int gaussian_kl_partials(int64_t numel);
void gaussian_kl(DType dtype, const GaussianKlOperands<void>& operands, float* partial, double scale, void* sum,
                 Stream stream);

}  // namespace genimg_fast::cuda

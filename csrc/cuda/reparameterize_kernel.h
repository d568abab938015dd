// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/noise_seed.h"

namespace genimg_fast::cuda {

// As the CPU's (cpu/reparameterize_kernel.h).
void reparameterize(DType dtype, const void* mu, const void* logvar, NoiseSeed seed, void* z, int64_t numel,
                    Stream stream);

void reparameterize_backward(DType dtype, const void* grad, const void* logvar, NoiseSeed seed, void* grad_logvar,
                             int64_t numel, Stream stream);

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// As the CPU's (cpu/reparameterize_kernel.h); seed[0] stays on the device.
void reparameterize(DType dtype, const void* mu, const void* logvar, const int64_t* seed, void* z, int64_t numel,
                    Stream stream);

void reparameterize_backward(DType dtype, const void* grad, const void* logvar, const int64_t* seed, void* grad_logvar,
                             int64_t numel, Stream stream);

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#pragma once
#include "common/reparameterize_with_kl.h"
#include "cuda/noise_seed.h"

namespace genimg_fast::cuda {

// As the CPU's (cpu/reparameterize_with_kl_kernel.h).  If operands.kl is null, sum[0] is
// scale times the sum.  scratch: reparameterize_with_kl_scratch(numel) floats.
int reparameterize_with_kl_scratch(int64_t numel);
void reparameterize_with_kl(DType dtype, const ReparameterizeWithKlOperands<void>& operands, NoiseSeed seed,
                            float* scratch, double scale, void* sum, Stream stream);

void reparameterize_with_kl_backward(DType dtype, const ReparameterizeWithKlGradients<void>& operands, NoiseSeed seed,
                                     Stream stream);

}  // namespace genimg_fast::cuda

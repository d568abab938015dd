// SPDX-License-Identifier: MIT
#pragma once
#include "common/reparameterize_with_kl.h"
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// As the CPU's (cpu/reparameterize_with_kl_kernel.h); seed[0] stays on the device.  If operands.kl is null, sum[0] is
// scale times the sum.  scratch: reparameterize_with_kl_scratch(numel) floats.
int reparameterize_with_kl_scratch(int64_t numel);
void reparameterize_with_kl(DType dtype, const ReparameterizeWithKlOperands<void>& operands, const int64_t* seed,
                            float* scratch, double scale, void* sum, Stream stream);

void reparameterize_with_kl_backward(DType dtype, const ReparameterizeWithKlGradients<void>& operands,
                                     const int64_t* seed, Stream stream);

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// out[i] = (mu[i]^2 + exp(logvar[i]) - 1 - logvar[i]) / 2
void gaussian_kl(DType dtype, const void* mu, const void* logvar, void* out, int64_t numel, Stream stream);

// out[0] = scale * sum over i of the same.  partial: gaussian_kl_partials(numel) floats of scratch.
int gaussian_kl_partials(int64_t numel);
void gaussian_kl_sum(DType dtype, const void* mu, const void* logvar, float* partial, double scale, void* out,
                     int64_t numel, Stream stream);

// As the CPU's (cpu/gaussian_kl_loss_kernel.h); grad stays on the device.
void gaussian_kl_backward(DType dtype, const void* grad, bool grad_is_scalar, double scale, const void* mu,
                          const void* logvar, void* grad_mu, void* grad_logvar, int64_t numel, Stream stream);

}  // namespace genimg_fast::cuda

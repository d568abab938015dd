// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/gaussian_kl_loss_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("gaussian_kl_partials", &cuda::gaussian_kl_partials);
  cuda_on_cpu::bind("gaussian_kl", [](cuda::DType dtype, const void* mu, const void* logvar, void* loss, void* grad_mu,
                                      void* grad_logvar, double grad_scale, int64_t numel, float* partial, double scale,
                                      void* sum) {
    cuda::gaussian_kl(dtype, {mu, logvar, loss, grad_mu, grad_logvar, grad_scale, numel}, partial, scale, sum, nullptr);
  });
}

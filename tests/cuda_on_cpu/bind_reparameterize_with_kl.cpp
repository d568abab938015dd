// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/reparameterize_with_kl_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("reparameterize_with_kl_scratch", &cuda::reparameterize_with_kl_scratch);
  cuda_on_cpu::bind(
      "reparameterize_with_kl", [](cuda::DType dtype, const void* mu, const void* logvar, const int64_t* seed, void* z,
                                   void* kl, int64_t numel, float* scratch, double scale, void* sum) {
        cuda::reparameterize_with_kl(dtype, {mu, logvar, z, kl, numel}, {seed, 0}, scratch, scale, sum, nullptr);
      });
  cuda_on_cpu::bind("reparameterize_with_kl_backward", [](cuda::DType dtype, const void* mu, const void* logvar,
                                                          const int64_t* seed, const void* grad_z, const void* grad_kl,
                                                          bool is_reduced, double kl_scale, void* grad_mu,
                                                          void* grad_logvar, int64_t numel) {
    cuda::reparameterize_with_kl_backward(
        dtype, {mu, logvar, grad_z, grad_kl, is_reduced, kl_scale, grad_mu, grad_logvar, numel}, {seed, 0}, nullptr);
  });
}

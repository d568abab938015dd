// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/reparameterize_kernel.h"

// seed: in memory, or None for the number that follows.
CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("reparameterize", [](cuda::DType dtype, const void* mu, const void* logvar, const int64_t* seed,
                                         int64_t value, void* z, int64_t numel) {
    cuda::reparameterize(dtype, mu, logvar, {seed, value}, z, numel, nullptr);
  });
  cuda_on_cpu::bind("reparameterize_backward",
                    [](cuda::DType dtype, const void* grad, const void* logvar, const int64_t* seed, int64_t value,
                       void* grad_logvar, int64_t numel) {
                      cuda::reparameterize_backward(dtype, grad, logvar, {seed, value}, grad_logvar, numel, nullptr);
                    });
}

// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/gaussian_kl_loss_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("gaussian_kl", &cuda::gaussian_kl);
  cuda_on_cpu::bind("gaussian_kl_partials", &cuda::gaussian_kl_partials);
  cuda_on_cpu::bind("gaussian_kl_sum", &cuda::gaussian_kl_sum);
  cuda_on_cpu::bind("gaussian_kl_backward", &cuda::gaussian_kl_backward);
}

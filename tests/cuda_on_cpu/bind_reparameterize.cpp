// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/reparameterize_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("reparameterize", &cuda::reparameterize);
  cuda_on_cpu::bind("reparameterize_backward", &cuda::reparameterize_backward);
}

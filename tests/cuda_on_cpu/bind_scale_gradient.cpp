// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/scale_gradient_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("scale_gradient",
                    [](cuda::DType dtype, void* gradient, cuda::ChannelVector upstream, int64_t numel) {
                      cuda::scale_gradient(dtype, gradient, upstream, numel, nullptr);
                    });
}

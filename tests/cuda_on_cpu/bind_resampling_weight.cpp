// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/resampling_weight_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("resampling_weight", [](cuda::DType dtype, const void* weight, int64_t out_channels,
                                            int64_t in_channels, bool pools, void* resampling) {
    cuda::resampling_weight(dtype, weight, out_channels, in_channels, pools, resampling, nullptr);
  });
  cuda_on_cpu::bind("resampling_weight_grad", [](cuda::DType dtype, const void* grad, int64_t out_channels,
                                                 int64_t in_channels, bool pools, void* grad_weight) {
    cuda::resampling_weight_grad(dtype, grad, out_channels, in_channels, pools, grad_weight, nullptr);
  });
}

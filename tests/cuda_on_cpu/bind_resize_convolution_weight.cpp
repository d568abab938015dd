// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/resize_convolution_weight_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("resize_convolution_weight", [](cuda::DType dtype, const void* weight, int64_t out_channels,
                                                    int64_t in_channels, void* transposed) {
    cuda::resize_convolution_weight(dtype, weight, out_channels, in_channels, transposed, nullptr);
  });
  cuda_on_cpu::bind("resize_convolution_weight_grad", [](cuda::DType dtype, const void* grad, int64_t out_channels,
                                                         int64_t in_channels, void* grad_weight) {
    cuda::resize_convolution_weight_grad(dtype, grad, out_channels, in_channels, grad_weight, nullptr);
  });
}

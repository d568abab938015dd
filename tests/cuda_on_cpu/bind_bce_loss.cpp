// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/bce_loss_kernel.h"

namespace {

using namespace genimg_fast;

void bce_loss(cuda::DType dtype, cuda::DType target_dtype, cuda::DType loss_dtype, const void* input,
              const void* target, const void* weight, void* loss, void* grad, int64_t numel, float* partial,
              double scale, void* sum) {
  cuda::bce_loss({dtype, target_dtype, loss_dtype}, {input, target, weight, nullptr, loss, grad, scale, numel}, partial,
                 scale, sum, nullptr);
}

}  // namespace

CUDA_ON_CPU_BINDINGS {
  cuda_on_cpu::bind("bce_loss", &bce_loss);
  cuda_on_cpu::bind("bce_partials", &cuda::bce_partials);
}

// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/bce_with_logits_loss_kernel.h"

namespace {

using namespace genimg_fast;

void bce_with_logits_loss(cuda::DType dtype, cuda::DType target_dtype, cuda::DType loss_dtype, const void* input,
                          const void* target, const void* weight, const void* pos_weight, void* loss, void* grad,
                          int64_t numel, float* partial, double scale, void* sum) {
  cuda::bce_with_logits_loss({dtype, target_dtype, loss_dtype},
                             {input, target, weight, pos_weight, loss, grad, scale, numel}, partial, scale, sum,
                             nullptr);
}

}  // namespace

CUDA_ON_CPU_BINDINGS {
  cuda_on_cpu::bind("bce_with_logits_loss", &bce_with_logits_loss);
  cuda_on_cpu::bind("bce_with_logits_partials", &cuda::bce_with_logits_partials);
}

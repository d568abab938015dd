// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/bce_with_logits_loss_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  cuda_on_cpu::bind("bce_with_logits_partials", &cuda::bce_with_logits_partials);
  cuda_on_cpu::bind(
      "bce_with_logits_loss", [](cuda::DType dtype, const void* input, const void* target, const void* weight,
                                 const void* pos_weight, void* loss, float* grad, double grad_scale, int64_t numel,
                                 float* partial, double scale, void* sum, void* stream) {
        cuda::bce_with_logits_loss(dtype, {input, target, weight, pos_weight, loss, grad, grad_scale, numel}, partial,
                                   scale, sum, stream);
      });
}

// SPDX-License-Identifier: MIT
// CUDA registration of bce_loss.
#include "cuda/bce_loss_kernel.h"
#include "ops/bce.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

std::tuple<Tensor, Tensor> forward(Tensor input, Tensor target, OptionalTensor weight, int64_t reduction,
                                   bool with_grad, bool float32_loss) {
  const CudaScope scope(input);
  BceCall call(input, target, weight, std::nullopt, reduction, with_grad, float32_loss);
  Tensor partial = float_scratch(call.input, cuda::bce_partials(call.input.numel()));
  cuda::bce_loss(loss_dtypes(call.input, call.target, call.loss), call.operands<void>(), mutable_data<float>(partial),
                 call.scale, call.is_reduced ? call.loss.mutable_data_ptr() : nullptr, scope.stream);
  return {call.loss, call.grad};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) { library.impl("bce_loss", TORCH_BOX(&genimg_fast::forward)); }

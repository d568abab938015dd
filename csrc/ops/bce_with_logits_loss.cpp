// SPDX-License-Identifier: MIT
// Schema and CPU registration of bce_with_logits_loss.
#include "cpu/bce_with_logits_loss_kernel.h"

#include "ops/bce.h"

namespace genimg_fast {
namespace {

std::tuple<Tensor, Tensor> forward(Tensor input, Tensor target, OptionalTensor weight, OptionalTensor pos_weight,
                                   int64_t reduction, bool with_grad, bool float32_loss) {
  BceCall call(input, target, weight, pos_weight, reduction, with_grad, float32_loss);
  dispatch_float_double(call.input, [&](auto zero) {
    using T = decltype(zero);
    const double sum = cpu::bce_with_logits_loss(call.operands<T>());
    if (call.is_reduced) *mutable_data<T>(call.loss) = static_cast<T>(sum * call.scale);
  });
  return {call.loss, call.grad};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "bce_with_logits_loss(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, int reduction, "
      "bool with_grad, bool float32_loss) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("bce_with_logits_loss", TORCH_BOX(&genimg_fast::forward));
}

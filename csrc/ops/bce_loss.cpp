// SPDX-License-Identifier: MIT
// Schema and CPU registration of bce_loss.
#include "cpu/bce_loss_kernel.h"

#include "ops/bce.h"

namespace genimg_fast {
namespace {

std::tuple<Tensor, Tensor> forward(Tensor input, Tensor target, OptionalTensor weight, int64_t reduction,
                                   bool with_grad, bool float32_loss) {
  BceCall call(input, target, weight, std::nullopt, reduction, with_grad, float32_loss);
  dispatch_float_double(call.input, [&](auto zero) {
    using T = decltype(zero);
    BceOutside outside;
    const double sum = cpu::bce_loss(call.operands<T>(), &outside);
    check(!outside.input, "bce_loss: all elements of input should be between 0 and 1");
    check(!outside.target, "bce_loss: all elements of target should be between 0 and 1");
    if (call.is_reduced) *mutable_data<T>(call.loss) = static_cast<T>(sum * call.scale);
  });
  return {call.loss, call.grad};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "bce_loss(Tensor input, Tensor target, Tensor? weight, int reduction, bool with_grad, bool float32_loss) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) { library.impl("bce_loss", TORCH_BOX(&genimg_fast::forward)); }

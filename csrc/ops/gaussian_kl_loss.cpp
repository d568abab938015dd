// SPDX-License-Identifier: MIT
// Schema and CPU registration of gaussian_kl_loss.
#include "ops/gaussian_kl_loss.h"

#include "cpu/gaussian_kl_loss_kernel.h"

namespace genimg_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(Tensor mu, Tensor logvar, int64_t reduction, bool with_grad) {
  const GaussianKlCall call(mu, logvar, reduction, with_grad);
  dispatch_float_double(call.mu, [&](auto zero) {
    using T = decltype(zero);
    const double sum = cpu::gaussian_kl(call.operands<T>());
    if (call.is_reduced) *mutable_data<T>(call.loss) = static_cast<T>(sum * call.scale);
  });
  return call.outputs();
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "gaussian_kl_loss(Tensor mu, Tensor logvar, int reduction, bool with_grad) -> (Tensor, Tensor grad_mu, Tensor "
      "grad_logvar)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("gaussian_kl_loss", TORCH_BOX(&genimg_fast::forward));
}

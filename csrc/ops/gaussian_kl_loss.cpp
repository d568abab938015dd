// SPDX-License-Identifier: MIT
// Schema and CPU registration of gaussian_kl_loss.
#include "ops/gaussian_kl_loss.h"

#include "cpu/gaussian_kl_loss_kernel.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor mu, Tensor logvar, int64_t reduction_code) {
  make_elementwise(mu, logvar);
  const auto reduction = static_cast<Reduction>(reduction_code);
  return dispatch_float_double(mu, [&](auto zero) {
    using T = decltype(zero);
    if (reduction == Reduction::none) {
      Tensor out = torch::stable::empty_like(mu);
      cpu::gaussian_kl(data<T>(mu), data<T>(logvar), mutable_data<T>(out), mu.numel());
      return out;
    }
    Tensor out = new_scalar(mu);
    const double sum = cpu::gaussian_kl_sum(data<T>(mu), data<T>(logvar), mu.numel());
    *mutable_data<T>(out) = static_cast<T>(sum * reduction_scale(reduction, mu.numel(), batch_size(mu)));
    return out;
  });
}

std::tuple<Tensor, Tensor> backward(Tensor grad, Tensor mu, Tensor logvar, int64_t reduction_code) {
  const auto reduction = static_cast<Reduction>(reduction_code);
  gaussian_kl_backward_layout(grad, mu, logvar, reduction);
  Tensor grad_mu = torch::stable::empty_like(mu), grad_logvar = torch::stable::empty_like(mu);
  dispatch_float_double(mu, [&](auto zero) {
    using T = decltype(zero);
    cpu::gaussian_kl_backward(data<T>(grad), reduction != Reduction::none,
                              reduction_scale(reduction, mu.numel(), batch_size(mu)), data<T>(mu), data<T>(logvar),
                              mutable_data<T>(grad_mu), mutable_data<T>(grad_logvar), mu.numel());
  });
  return {grad_mu, grad_logvar};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("gaussian_kl_loss(Tensor mu, Tensor logvar, int reduction) -> Tensor");
  library.def("gaussian_kl_loss_backward(Tensor grad, Tensor mu, Tensor logvar, int reduction) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("gaussian_kl_loss", TORCH_BOX(&genimg_fast::forward));
  library.impl("gaussian_kl_loss_backward", TORCH_BOX(&genimg_fast::backward));
}

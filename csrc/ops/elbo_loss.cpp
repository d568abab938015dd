// SPDX-License-Identifier: MIT
// Schema and CPU registration of elbo_loss.
#include "cpu/elbo_loss_kernel.h"

#include "cpu/bce_loss_kernel.h"
#include "cpu/bce_with_logits_loss_kernel.h"
#include "cpu/gaussian_kl_loss_kernel.h"
#include "ops/elbo_loss.h"

namespace genimg_fast {
namespace {

template <typename T>
double reconstruction_sum(const ElboCall& call) {
  T* grad = saved_gradient_data<T>(call.grad_recon, call.with_grad);
  const T *recon = data<T>(call.recon), *target = data<T>(call.target);
  const int64_t numel = call.recon.numel();
  if (call.reconstruction == Reconstruction::mse)
    return cpu::squared_error(recon, target, grad, call.recon_scale, numel);
  const BceOperands<T> operands{recon, target, nullptr, nullptr, nullptr, grad, call.recon_scale, numel};
  if (call.reconstruction == Reconstruction::bce_with_logits) return cpu::bce_with_logits_loss(operands);
  BceOutside outside;
  const double sum = cpu::bce_loss(operands, &outside);
  check(!outside.input, "elbo_loss: all elements of recon should be between 0 and 1");
  check(!outside.target, "elbo_loss: all elements of target should be between 0 and 1");
  return sum;
}

template <typename T>
double kl_sum(const ElboCall& call) {
  return cpu::gaussian_kl(GaussianKlOperands<T>{
      data<T>(call.mu), data<T>(call.logvar), nullptr, saved_gradient_data<T>(call.grad_mu, call.with_grad),
      saved_gradient_data<T>(call.grad_logvar, call.with_grad), call.kl_scale, call.mu.numel()});
}

ElboOutputs forward(Tensor recon, Tensor target, Tensor mu, Tensor logvar, int64_t reconstruction, double beta,
                    int64_t reduction, bool with_grad, bool float32_loss) {
  ElboCall call(recon, target, mu, logvar, reconstruction, reduction, with_grad, float32_loss);
  dispatch_float_double(call.recon, [&](auto zero) {
    using T = decltype(zero);
    const double reconstruction_loss = reconstruction_sum<T>(call) * call.recon_scale;
    const double kl = kl_sum<T>(call) * call.kl_scale;
    *mutable_data<T>(call.total) = static_cast<T>(reconstruction_loss + beta * kl);
    *mutable_data<T>(call.reconstruction_loss) = static_cast<T>(reconstruction_loss);
    *mutable_data<T>(call.kl) = static_cast<T>(kl);
  });
  return call.outputs();
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "elbo_loss(Tensor recon, Tensor target, Tensor mu, Tensor logvar, int reconstruction, float beta, int reduction, "
      "bool with_grad, bool float32_loss) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) { library.impl("elbo_loss", TORCH_BOX(&genimg_fast::forward)); }

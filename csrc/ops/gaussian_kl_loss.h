// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of gaussian_kl_loss share.
#pragma once
#include "common/gaussian_kl.h"
#include "common/reduction.h"
#include "ops/loss.h"

namespace genimg_fast {

// The tensors of one call in one memory order, its outputs allocated.
struct GaussianKlCall {
  GaussianKlCall(Tensor mu_, Tensor logvar_, int64_t reduction_code, bool with_grad_)
      : mu(mu_), logvar(logvar_), with_grad(with_grad_) {
    make_elementwise(mu, logvar);
    const auto reduction = static_cast<Reduction>(reduction_code);
    is_reduced = reduction != Reduction::none;
    scale = reduction_scale(reduction, mu.numel(), mu.dim() == 0 ? 1 : mu.size(0));
    loss = is_reduced ? new_scalar(mu) : new_like(mu);
    grad_mu = new_saved_gradient(mu, with_grad);
    grad_logvar = new_saved_gradient(logvar, with_grad);
  }

  template <typename T>
  GaussianKlOperands<T> operands() const {
    return {data<T>(mu),
            data<T>(logvar),
            is_reduced ? nullptr : mutable_data<T>(loss),
            saved_gradient_data<T>(grad_mu, with_grad),
            saved_gradient_data<T>(grad_logvar, with_grad),
            scale,
            mu.numel()};
  }

  std::tuple<Tensor, Tensor, Tensor> outputs() const { return {loss, grad_mu, grad_logvar}; }

  Tensor mu, logvar;
  bool with_grad, is_reduced;
  double scale;  // of the reduction
  Tensor loss, grad_mu, grad_logvar;
};

}  // namespace genimg_fast

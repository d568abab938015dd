// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of elbo_loss share.
#pragma once
#include "common/reconstruction.h"
#include "common/reduction.h"
#include "ops/loss.h"

namespace genimg_fast {

using ElboOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The tensors of one call, recon and target in one memory order, mu and logvar in another, its outputs allocated.
struct ElboCall {
  ElboCall(Tensor recon_, Tensor target_, Tensor mu_, Tensor logvar_, int64_t reconstruction_code,
           int64_t reduction_code, bool with_grad_, bool float32_loss)
      : recon(recon_), target(target_), mu(mu_), logvar(logvar_), with_grad(with_grad_) {
    make_elementwise(recon);
    lay_out_target(recon, target);
    make_elementwise(mu, logvar);
    check(recon.scalar_type() == mu.scalar_type() && on_same_device(recon, mu),
          "genimg_fast: elbo_loss: recon and mu differ in dtype or device");
    reconstruction = static_cast<Reconstruction>(reconstruction_code);
    const auto reduction = static_cast<Reduction>(reduction_code);
    const auto scale = [&](const Tensor& t) {
      return reduction_scale(reduction, t.numel(), t.dim() == 0 ? 1 : t.size(0));
    };
    recon_scale = scale(recon);
    kl_scale = scale(mu);
    for (Tensor* loss : {&total, &reconstruction_loss, &kl}) *loss = new_loss(recon, float32_loss);
    grad_recon = new_saved_gradient(recon, with_grad);
    grad_mu = new_saved_gradient(mu, with_grad);
    grad_logvar = new_saved_gradient(logvar, with_grad);
  }

  ElboOutputs outputs() const { return {total, reconstruction_loss, kl, grad_recon, grad_mu, grad_logvar}; }

  Tensor recon, target, mu, logvar;
  bool with_grad;
  Reconstruction reconstruction;
  double recon_scale, kl_scale;  // of the reduction
  Tensor total, reconstruction_loss, kl, grad_recon, grad_mu, grad_logvar;
};

}  // namespace genimg_fast

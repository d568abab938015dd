// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of reparameterize_with_kl share.
#pragma once
#include "common/reduction.h"
#include "common/reparameterize_with_kl.h"
#include "ops/reparameterize.h"

namespace genimg_fast {

// The contiguous tensors of one call, its outputs allocated.
struct ReparameterizeWithKlCall {
  ReparameterizeWithKlCall(const Tensor& mu_, const Tensor& logvar_, const Tensor& seed, int64_t reduction_code)
      : mu(torch::stable::contiguous(mu_)), logvar(torch::stable::contiguous(logvar_)) {
    check_noise_arguments(mu, logvar, seed);
    const auto reduction = static_cast<Reduction>(reduction_code);
    is_reduced = reduction != Reduction::none;
    scale = reduction_scale(reduction, mu.numel(), mu.dim() == 0 ? 1 : mu.size(0));
  }

  Tensor mu, logvar;
  bool is_reduced;
  double scale;  // of the reduction
};

struct ReparameterizeWithKlForward : ReparameterizeWithKlCall {
  ReparameterizeWithKlForward(const Tensor& mu_, const Tensor& logvar_, const Tensor& seed, int64_t reduction_code)
      : ReparameterizeWithKlCall(mu_, logvar_, seed, reduction_code),
        z(new_like(mu)),
        kl(is_reduced ? new_scalar(mu) : new_like(mu)) {}

  template <typename T>
  ReparameterizeWithKlOperands<T> operands() const {
    return {data<T>(mu), data<T>(logvar), mutable_data<T>(z), is_reduced ? nullptr : mutable_data<T>(kl), mu.numel()};
  }

  std::tuple<Tensor, Tensor> outputs(const Tensor& like) const {
    return {laid_out_like(like, z), is_reduced ? kl : laid_out_like(like, kl)};
  }

  Tensor z, kl;
};

struct ReparameterizeWithKlBackward : ReparameterizeWithKlCall {
  ReparameterizeWithKlBackward(const OptionalTensor& grad_z_, const Tensor& grad_kl_, const Tensor& mu_,
                               const Tensor& logvar_, const Tensor& seed, int64_t reduction_code)
      : ReparameterizeWithKlCall(mu_, logvar_, seed, reduction_code),
        grad_kl(torch::stable::contiguous(grad_kl_)),
        grad_mu(new_like(mu)),
        grad_logvar(new_like(mu)) {
    if (grad_z_) {
      grad_z = torch::stable::contiguous(*grad_z_);
      check_noise_arguments(mu, *grad_z, seed);
    }
    check(is_reduced ? grad_kl.numel() == 1 : same_sizes(grad_kl, mu),
          "reparameterize_with_kl: grad_kl has not the shape of the divergence");
    check(grad_kl.scalar_type() == mu.scalar_type() && on_same_device(grad_kl, mu),
          "reparameterize_with_kl: grad_kl and mu differ in dtype or device");
  }

  template <typename T>
  ReparameterizeWithKlGradients<T> operands() const {
    return {data<T>(mu), data<T>(logvar),          grad_z ? data<T>(*grad_z) : nullptr, data<T>(grad_kl), is_reduced,
            scale,       mutable_data<T>(grad_mu), mutable_data<T>(grad_logvar),        mu.numel()};
  }

  std::tuple<Tensor, Tensor> outputs(const Tensor& like_mu, const Tensor& like_logvar) const {
    return {laid_out_like(like_mu, grad_mu), laid_out_like(like_logvar, grad_logvar)};
  }

  OptionalTensor grad_z;
  Tensor grad_kl, grad_mu, grad_logvar;
};

}  // namespace genimg_fast

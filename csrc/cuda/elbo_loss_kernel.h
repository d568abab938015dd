// SPDX-License-Identifier: MIT
#pragma once
#include "common/reconstruction.h"
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// What elbo_loss reads and writes.  T is the element type, or void before the dispatch on it; the gradients may be
// wider.  They are those of the terms, not of the total, and null if they are not wanted.
template <typename T, typename Grad = T>
struct ElboOperands {
  const T* recon;                     // [image_numel]
  const void* target;                 // [image_numel], of LossDTypes::target
  const T *mu, *logvar;               // [latent_numel]
  void *total, *reconstruction, *kl;  // one element each, of LossDTypes::loss
  Grad* grad_recon;                   // [image_numel]
  Grad *grad_mu, *grad_logvar;        // [latent_numel]
  double recon_scale, kl_scale;       // of the reduction
  double beta;
  int64_t image_numel, latent_numel;
};

// partial: elbo_partials(...) floats of scratch.
int elbo_partials(int64_t image_numel, int64_t latent_numel);
void elbo_loss(LossDTypes dtypes, Reconstruction reconstruction, const ElboOperands<void>& operands, float* partial,
               Stream stream);

}  // namespace genimg_fast::cuda

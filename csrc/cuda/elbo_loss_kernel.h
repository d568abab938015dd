// SPDX-License-Identifier: MIT
#pragma once
#include "common/reconstruction.h"
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// What elbo_loss reads and writes.  T is the element type, or void before the dispatch on it.  The gradients are those
// of the terms, not of the total, and null if they are not wanted.
template <typename T>
struct ElboOperands {
  const T *recon, *target;  // [image_numel]
  const T *mu, *logvar;     // [latent_numel]
  T *total, *reconstruction, *kl;
  float* grad_recon;             // [image_numel]
  float *grad_mu, *grad_logvar;  // [latent_numel]
  double recon_scale, kl_scale;  // of the reduction
  double beta;
  int64_t image_numel, latent_numel;
};

// partial: elbo_partials(...) floats of scratch.
int elbo_partials(int64_t image_numel, int64_t latent_numel);
void elbo_loss(DType dtype, Reconstruction reconstruction, const ElboOperands<void>& operands, float* partial,
               Stream stream);

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/elbo_loss_kernel.h"

namespace {

using namespace genimg_fast;

void elbo_loss(cuda::DType dtype, cuda::DType target_dtype, cuda::DType loss_dtype, int64_t kind, const void* recon,
               const void* target, const void* mu, const void* logvar, void* total, void* reconstruction, void* kl,
               void* grad_recon, void* grad_mu, void* grad_logvar, double recon_scale, double kl_scale, double beta,
               int64_t image_numel, int64_t latent_numel, float* partial) {
  const cuda::ElboOperands<void> operands{recon,          target,   mu,         logvar,      total,
                                          reconstruction, kl,       grad_recon, grad_mu,     grad_logvar,
                                          recon_scale,    kl_scale, beta,       image_numel, latent_numel};
  cuda::elbo_loss({dtype, target_dtype, loss_dtype}, static_cast<Reconstruction>(kind), operands, partial, nullptr);
}

}  // namespace

CUDA_ON_CPU_BINDINGS {
  cuda_on_cpu::bind("elbo_loss", &elbo_loss);
  cuda_on_cpu::bind("elbo_partials", &cuda::elbo_partials);
}

// SPDX-License-Identifier: MIT
// CUDA registration of elbo_loss.
#include "cuda/elbo_loss_kernel.h"
#include "ops/elbo_loss.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

ElboOutputs forward(Tensor recon, Tensor target, Tensor mu, Tensor logvar, int64_t reconstruction, double beta,
                    int64_t reduction, bool with_grad, bool float32_loss) {
  const CudaScope scope(recon);
  ElboCall call(recon, target, mu, logvar, reconstruction, reduction, with_grad, float32_loss);
  const int64_t image_numel = call.recon.numel(), latent_numel = call.mu.numel();
  Tensor partial = float_scratch(call.recon, cuda::elbo_partials(image_numel, latent_numel));
  const cuda::ElboOperands<void> operands{data<void>(call.recon),
                                          data<void>(call.target),
                                          data<void>(call.mu),
                                          data<void>(call.logvar),
                                          mutable_data<void>(call.total),
                                          mutable_data<void>(call.reconstruction_loss),
                                          mutable_data<void>(call.kl),
                                          saved_gradient_data<void>(call.grad_recon, with_grad),
                                          saved_gradient_data<void>(call.grad_mu, with_grad),
                                          saved_gradient_data<void>(call.grad_logvar, with_grad),
                                          call.recon_scale,
                                          call.kl_scale,
                                          beta,
                                          image_numel,
                                          latent_numel};
  cuda::elbo_loss(loss_dtypes(call.recon, call.target, call.total), call.reconstruction, operands,
                  mutable_data<float>(partial), scope.stream);
  return call.outputs();
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) { library.impl("elbo_loss", TORCH_BOX(&genimg_fast::forward)); }

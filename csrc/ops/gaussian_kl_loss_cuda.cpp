// SPDX-License-Identifier: MIT
// CUDA registration of gaussian_kl_loss.
#include "cuda/gaussian_kl_loss_kernel.h"
#include "ops/gaussian_kl_loss.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor mu, Tensor logvar, int64_t reduction_code) {
  make_elementwise(mu, logvar);
  const CudaScope scope(mu);
  const auto reduction = static_cast<Reduction>(reduction_code);
  const int64_t numel = mu.numel();
  if (reduction == Reduction::none) {
    Tensor out = torch::stable::empty_like(mu);
    cuda::gaussian_kl(cuda_dtype(mu), mu.const_data_ptr(), logvar.const_data_ptr(), out.mutable_data_ptr(), numel,
                      scope.stream);
    return out;
  }
  Tensor out = new_scalar(mu), partial = float_scratch(mu, cuda::gaussian_kl_partials(numel));
  cuda::gaussian_kl_sum(cuda_dtype(mu), mu.const_data_ptr(), logvar.const_data_ptr(), mutable_data<float>(partial),
                        reduction_scale(reduction, numel, batch_size(mu)), out.mutable_data_ptr(), numel, scope.stream);
  return out;
}

std::tuple<Tensor, Tensor> backward(Tensor grad, Tensor mu, Tensor logvar, int64_t reduction_code) {
  const auto reduction = static_cast<Reduction>(reduction_code);
  gaussian_kl_backward_layout(grad, mu, logvar, reduction);
  const CudaScope scope(mu);
  Tensor grad_mu = torch::stable::empty_like(mu), grad_logvar = torch::stable::empty_like(mu);
  cuda::gaussian_kl_backward(cuda_dtype(mu), grad.const_data_ptr(), reduction != Reduction::none,
                             reduction_scale(reduction, mu.numel(), batch_size(mu)), mu.const_data_ptr(),
                             logvar.const_data_ptr(), grad_mu.mutable_data_ptr(), grad_logvar.mutable_data_ptr(),
                             mu.numel(), scope.stream);
  return {grad_mu, grad_logvar};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("gaussian_kl_loss", TORCH_BOX(&genimg_fast::forward));
  library.impl("gaussian_kl_loss_backward", TORCH_BOX(&genimg_fast::backward));
}

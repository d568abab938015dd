// SPDX-License-Identifier: MIT
// CUDA registration of gaussian_kl_loss.
#include "cuda/gaussian_kl_loss_kernel.h"
#include "ops/gaussian_kl_loss.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor> forward(Tensor mu, Tensor logvar, int64_t reduction, bool with_grad) {
  const CudaScope scope(mu);
  const GaussianKlCall call(mu, logvar, reduction, with_grad);
  Tensor partial = float_scratch(mu, cuda::gaussian_kl_partials(mu.numel()));
  cuda::gaussian_kl(cuda_dtype(mu), call.operands<void>(), mutable_data<float>(partial), call.scale,
                    call.is_reduced ? mutable_data<void>(call.loss) : nullptr, scope.stream);
  return call.outputs();
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("gaussian_kl_loss", TORCH_BOX(&genimg_fast::forward));
}

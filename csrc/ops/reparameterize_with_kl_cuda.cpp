// SPDX-License-Identifier: MIT
// CUDA registration of reparameterize_with_kl.
#include "cuda/reparameterize_with_kl_kernel.h"
#include "ops/reparameterize_with_kl.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

std::tuple<Tensor, Tensor> forward(Tensor mu, Tensor logvar, Tensor seed, int64_t reduction) {
  const CudaScope scope(mu);
  const ReparameterizeWithKlForward call(mu, logvar, seed, reduction);
  // The memory of a divergence without values is null, as that of one that is reduced.
  if (mu.numel() == 0 && !call.is_reduced) return call.outputs(mu);
  Tensor scratch = float_scratch(mu, cuda::reparameterize_with_kl_scratch(mu.numel()));
  cuda::reparameterize_with_kl(cuda_dtype(mu), call.operands<void>(), noise_seed(seed), mutable_data<float>(scratch),
                               call.scale, mutable_data<void>(call.kl), scope.stream);
  return call.outputs(mu);
}

std::tuple<Tensor, Tensor> backward(OptionalTensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed,
                                    int64_t reduction) {
  const CudaScope scope(mu);
  const ReparameterizeWithKlBackward call(grad_z, grad_kl, mu, logvar, seed, reduction);
  cuda::reparameterize_with_kl_backward(cuda_dtype(mu), call.operands<void>(), noise_seed(seed), scope.stream);
  return call.outputs(mu, logvar);
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("reparameterize_with_kl", TORCH_BOX(&genimg_fast::forward));
  library.impl("reparameterize_with_kl_backward", TORCH_BOX(&genimg_fast::backward));
}

// SPDX-License-Identifier: MIT
// CUDA registration of reparameterize.
#include "cuda/reparameterize_kernel.h"
#include "ops/reparameterize.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor mu, Tensor logvar, Tensor seed) {
  const CudaScope scope(mu);
  const Tensor m = torch::stable::contiguous(mu), v = torch::stable::contiguous(logvar);
  check_noise_arguments(m, v, seed);
  Tensor z = torch::stable::empty_like(m);
  cuda::reparameterize(cuda_dtype(m), m.const_data_ptr(), v.const_data_ptr(), noise_seed(seed), z.mutable_data_ptr(),
                       m.numel(), scope.stream);
  return laid_out_like(mu, z);
}

Tensor backward(Tensor grad, Tensor logvar, Tensor seed) {
  const CudaScope scope(logvar);
  const Tensor g = torch::stable::contiguous(grad), v = torch::stable::contiguous(logvar);
  check_noise_arguments(g, v, seed);
  Tensor grad_logvar = torch::stable::empty_like(v);
  cuda::reparameterize_backward(cuda_dtype(v), g.const_data_ptr(), v.const_data_ptr(), noise_seed(seed),
                                grad_logvar.mutable_data_ptr(), v.numel(), scope.stream);
  return laid_out_like(logvar, grad_logvar);
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("reparameterize", TORCH_BOX(&genimg_fast::forward));
  library.impl("reparameterize_backward", TORCH_BOX(&genimg_fast::backward));
}

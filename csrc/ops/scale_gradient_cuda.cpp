// SPDX-License-Identifier: MIT
// CUDA registration of scale_gradient_.
#include "cuda/scale_gradient_kernel.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

void scale_gradient_(Tensor gradient, Tensor upstream) {
  const CudaScope scope(gradient);
  check(upstream.numel() == 1 && on_same_device(upstream, gradient),
        "scale_gradient_: upstream must be one number on the gradient's GPU");
  check(is_dense(gradient), "scale_gradient_: the gradient must be dense");
  cuda::scale_gradient(cuda_dtype(gradient), mutable_data<void>(gradient), channel_vector(upstream), gradient.numel(),
                       scope.stream);
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("scale_gradient_", TORCH_BOX(&genimg_fast::scale_gradient_));
}

// SPDX-License-Identifier: MIT
// CUDA registration of resampling_weight and of its transpose.
#include "cuda/resampling_weight_kernel.h"

#include "ops/resampling_weight.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor weight, bool pools) {
  const CudaScope scope(weight);
  const ResamplingWeightCall call(weight, pools, false);
  cuda::resampling_weight(cuda_dtype(weight), call.from.const_data_ptr(), call.out_channels, call.in_channels, pools,
                          call.to.mutable_data_ptr(), scope.stream);
  return call.to;
}

Tensor backward(Tensor grad, bool pools) {
  const CudaScope scope(grad);
  ResamplingWeightCall call(grad, pools, true);
  if (reinterpret_cast<uintptr_t>(call.from.const_data_ptr()) % 16 != 0)  // a view that begins anywhere
    call.from = densely_copied(call.from, call.from);
  cuda::resampling_weight_grad(cuda_dtype(grad), call.from.const_data_ptr(), call.out_channels, call.in_channels, pools,
                               call.to.mutable_data_ptr(), scope.stream);
  return call.to;
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("resampling_weight", TORCH_BOX(&genimg_fast::forward));
  library.impl("resampling_weight_grad", TORCH_BOX(&genimg_fast::backward));
}

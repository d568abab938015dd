// SPDX-License-Identifier: MIT
// CUDA registration of resize_convolution_weight and of its transpose.
#include "cuda/resize_convolution_weight_kernel.h"

#include "ops/resize_convolution_weight.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor weight) {
  const CudaScope scope(weight);
  const ResizeWeightCall call(weight, false);
  cuda::resize_convolution_weight(cuda_dtype(weight), call.from.const_data_ptr(), call.out_channels, call.in_channels,
                                  call.to.mutable_data_ptr(), scope.stream);
  return call.to;
}

Tensor backward(Tensor grad) {
  const CudaScope scope(grad);
  ResizeWeightCall call(grad, true);
  if (reinterpret_cast<uintptr_t>(call.from.const_data_ptr()) % 16 != 0)  // a view that begins anywhere
    call.from = densely_copied(call.from, call.from);
  cuda::resize_convolution_weight_grad(cuda_dtype(grad), call.from.const_data_ptr(), call.out_channels,
                                       call.in_channels, call.to.mutable_data_ptr(), scope.stream);
  return call.to;
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("resize_convolution_weight", TORCH_BOX(&genimg_fast::forward));
  library.impl("resize_convolution_weight_grad", TORCH_BOX(&genimg_fast::backward));
}

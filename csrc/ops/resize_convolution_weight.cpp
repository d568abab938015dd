// SPDX-License-Identifier: MIT
// Schemas and CPU registration of resize_convolution_weight and of its transpose.
#include "ops/resize_convolution_weight.h"

#include "cpu/resize_convolution_weight_kernel.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor weight) {
  const ResizeWeightCall call(weight, false);
  dispatch_float_double(call.from, [&](auto zero) {
    using T = decltype(zero);
    cpu::resize_convolution_weight<T>(data<T>(call.from), call.out_channels, call.in_channels,
                                      mutable_data<T>(call.to));
  });
  return call.to;
}

Tensor backward(Tensor grad) {
  const ResizeWeightCall call(grad, true);
  dispatch_float_double(call.from, [&](auto zero) {
    using T = decltype(zero);
    cpu::resize_convolution_weight_grad<T>(data<T>(call.from), call.out_channels, call.in_channels,
                                           mutable_data<T>(call.to));
  });
  return call.to;
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("resize_convolution_weight(Tensor weight) -> Tensor");
  library.def("resize_convolution_weight_grad(Tensor grad) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("resize_convolution_weight", TORCH_BOX(&genimg_fast::forward));
  library.impl("resize_convolution_weight_grad", TORCH_BOX(&genimg_fast::backward));
}

// SPDX-License-Identifier: MIT
// Schemas and CPU registration of resampling_weight and of its transpose.
#include "ops/resampling_weight.h"

#include "cpu/resampling_weight_kernel.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor weight, bool pools) {
  const ResamplingWeightCall call(weight, pools, false);
  dispatch_float_double(call.from, [&](auto zero) {
    using T = decltype(zero);
    cpu::resampling_weight<T>(data<T>(call.from), call.out_channels, call.in_channels, pools, mutable_data<T>(call.to));
  });
  return call.to;
}

Tensor backward(Tensor grad, bool pools) {
  const ResamplingWeightCall call(grad, pools, true);
  dispatch_float_double(call.from, [&](auto zero) {
    using T = decltype(zero);
    cpu::resampling_weight_grad<T>(data<T>(call.from), call.out_channels, call.in_channels, pools,
                                   mutable_data<T>(call.to));
  });
  return call.to;
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("resampling_weight(Tensor weight, bool pools) -> Tensor");
  library.def("resampling_weight_grad(Tensor grad, bool pools) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("resampling_weight", TORCH_BOX(&genimg_fast::forward));
  library.impl("resampling_weight_grad", TORCH_BOX(&genimg_fast::backward));
}

// SPDX-License-Identifier: MIT
// Schemas and CPU registration of resize_convolution_weight and of its transpose.
#include "cpu/resize_convolution_weight_kernel.h"
#include "ops/convolution.h"

namespace genimg_fast {
namespace {

Tensor forward(Tensor weight) {
  check(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
        "resize_convolution_weight: weight must be [Cout, Cin, 3, 3]");
  const Tensor w = to_contiguous(weight);
  const int64_t out_channels = w.size(0), in_channels = w.size(1);
  Tensor transposed = torch::stable::new_empty(w, {in_channels, out_channels, 4, 4});
  dispatch_float_double(w, [&](auto zero) {
    using T = decltype(zero);
    cpu::resize_convolution_weight<T>(data<T>(w), out_channels, in_channels, mutable_data<T>(transposed));
  });
  return transposed;
}

Tensor backward(Tensor grad) {
  check(grad.dim() == 4 && grad.size(2) == 4 && grad.size(3) == 4,
        "resize_convolution_weight_grad: grad must be [Cin, Cout, 4, 4]");
  const Tensor g = to_contiguous(grad);
  const int64_t in_channels = g.size(0), out_channels = g.size(1);
  Tensor grad_weight = torch::stable::new_empty(g, {out_channels, in_channels, 3, 3});
  dispatch_float_double(g, [&](auto zero) {
    using T = decltype(zero);
    cpu::resize_convolution_weight_grad<T>(data<T>(g), out_channels, in_channels, mutable_data<T>(grad_weight));
  });
  return grad_weight;
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

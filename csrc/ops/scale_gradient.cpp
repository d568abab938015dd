// SPDX-License-Identifier: MIT
// scale_gradient_: the gradient that a loss made in its forward pass times the upstream gradient, a scalar of the same
// GPU, in place.  CUDA alone has it; on the CPU the host looks at the scalar.
#include "ops/tensor.h"

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("scale_gradient_(Tensor(a!) gradient, Tensor upstream) -> ()");
}

// SPDX-License-Identifier: MIT
#pragma once
#include "ops/tensor.h"

namespace genimg_fast {

// Where a loss writes the gradient that it makes in its forward pass: in the layout of `input`, in float32 or wider,
// since the factor 1/numel of a mean would underflow in float16.  Empty if the gradient is not wanted.
inline Tensor new_saved_gradient(const Tensor& input, bool wanted) {
  const ScalarType dtype = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return wanted ? empty_like(input, dtype) : torch::stable::new_empty(input, {0}, dtype);
}

// Its address, or null if the gradient is not wanted.
template <typename Grad>
Grad* saved_gradient_data(const Tensor& grad, bool wanted) {
  return wanted ? mutable_data<Grad>(grad) : nullptr;
}

}  // namespace genimg_fast

// SPDX-License-Identifier: MIT
#pragma once
#include "cpu/kept_block.h"
#include "ops/tensor.h"

namespace genimg_fast {

// As torch.empty_like(t, dtype=dtype) of a dense tensor, in the memory of the last such tensor freed; but its storage
// cannot be resized.
inline Tensor empty_like_in_kept_block(const Tensor& t, ScalarType dtype, int64_t bytes) {
  std::unique_ptr<cpu::KeptBlock> block = cpu::KeptBlock::take(bytes);
  const auto keep = [p = block.get()](void*) { cpu::KeptBlock::keep(std::unique_ptr<cpu::KeptBlock>(p)); };
  Tensor out = torch::stable::from_blob(block->memory.get(), t.sizes(), t.strides(), t.device(), dtype, keep);
  block.release();  // it is the tensor's now
  return out;
}

// Where a loss writes the gradient that it makes in its forward pass: in the layout of `input`, which is dense, in
// float32 or wider, since the factor 1/numel of a mean would underflow in float16.  Empty if the gradient is not
// wanted.
inline Tensor new_saved_gradient(const Tensor& input, bool wanted) {
  const bool is_double = input.scalar_type() == ScalarType::Double;
  const ScalarType dtype = is_double ? ScalarType::Double : ScalarType::Float;
  if (!wanted) return torch::stable::new_empty(input, {0}, dtype);
  const int64_t bytes = input.numel() * static_cast<int64_t>(is_double ? sizeof(double) : sizeof(float));
  if (input.is_cpu() && cpu::KeptBlock::kSmallest <= bytes && bytes <= cpu::KeptBlock::kLargest)
    return empty_like_in_kept_block(input, dtype, bytes);
  return empty_like(input, dtype);
}

// Its address, or null if the gradient is not wanted.
template <typename Grad>
Grad* saved_gradient_data(const Tensor& grad, bool wanted) {
  return wanted ? mutable_data<Grad>(grad) : nullptr;
}

}  // namespace genimg_fast

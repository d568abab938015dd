// SPDX-License-Identifier: MIT
// What the losses share: the gradient that they make in their forward pass, and autocast's dtypes.
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

// Where a loss writes the gradient that it makes in its forward pass: in the layout of `input`, which is dense, and in
// its dtype, but for float16, in which the factor 1/numel of a mean would underflow: then it is float32.  Empty if the
// gradient is not wanted.
inline Tensor new_saved_gradient(const Tensor& input, bool wanted) {
  const ScalarType dtype = input.scalar_type() == ScalarType::Half ? ScalarType::Float : input.scalar_type();
  if (!wanted) return torch::stable::new_empty(input, {0}, dtype);
  const auto item_bytes = dtype == input.scalar_type() ? input.element_size() : sizeof(float);
  const int64_t bytes = input.numel() * static_cast<int64_t>(item_bytes);
  if (input.is_cpu() && cpu::KeptBlock::kSmallest <= bytes && bytes <= cpu::KeptBlock::kLargest)
    return empty_like_in_kept_block(input, dtype, bytes);
  return new_like(input, dtype);
}

// Its address, or null if the gradient is not wanted.
template <typename Grad>
Grad* saved_gradient_data(const Tensor& grad, bool wanted) {
  return wanted ? mutable_data<Grad>(grad) : nullptr;
}

inline bool is_half_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Half || t.scalar_type() == ScalarType::BFloat16;
}

// As lay_out_like(), and beside an input of a half type a target may be float32: under autocast images are.
inline void lay_out_target(const Tensor& input, Tensor& target) {
  const bool is_wider = input.is_cuda() && is_half_type(input) && target.scalar_type() == ScalarType::Float;
  check(is_wider || input.scalar_type() == target.scalar_type(),
        "genimg_fast: target must have the dtype of the input, or on CUDA float32");
  lay_out_like_in_own_dtype(input, target);
}

// A reduced loss, in the dtype of `input` or, of a half type, in float32.
inline Tensor new_loss(const Tensor& input, bool float32_loss) {
  return torch::stable::new_empty(input, {},
                                  float32_loss && is_half_type(input) ? ScalarType::Float : input.scalar_type());
}

}  // namespace genimg_fast

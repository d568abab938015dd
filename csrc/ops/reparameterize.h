// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of reparameterize share.  Their kernels number elements in logical order, so that
// the noise does not depend on the layout: they see contiguous tensors.
#pragma once
#include "ops/tensor.h"

namespace genimg_fast {

inline void check_noise_arguments(const Tensor& a, const Tensor& b, const Tensor& seed) {
  check(same_sizes(a, b), "reparameterize: operands differ in shape");
  check(a.scalar_type() == b.scalar_type(), "reparameterize: operands differ in dtype");
  check(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long, "reparameterize: seed must be one int64");
  // A seed on the CPU goes with operands of either device.
  check(on_same_device(a, b) && (!seed.is_cuda() || on_same_device(a, seed)),
        "reparameterize: operands are on different devices");
}

// Of a seed on the CPU.
inline uint64_t seed_value(const Tensor& seed) { return static_cast<uint64_t>(*data<int64_t>(seed)); }

// `contiguous`, in the layout of `like`.
inline Tensor laid_out_like(const Tensor& like, const Tensor& contiguous) {
  Tensor out = new_like(like);
  return same_order(out, contiguous) ? contiguous : torch::stable::copy_(out, contiguous);
}

}  // namespace genimg_fast

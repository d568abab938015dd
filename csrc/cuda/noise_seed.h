// SPDX-License-Identifier: MIT
#pragma once
#include "common/activation.h"
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// The seed of a call's noise: in device memory, where a CUDA graph draws a new one before each replay, or a number that
// the host knows, for which no kernel had to run.
struct NoiseSeed {
  const int64_t* in_memory = nullptr;
  int64_t value = 0;

  GENIMG_FAST_HOST_DEVICE uint64_t get() const { return static_cast<uint64_t>(in_memory ? *in_memory : value); }
};

}  // namespace genimg_fast::cuda

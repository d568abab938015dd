// SPDX-License-Identifier: MIT
// How the registration files, which include no CUDA header, and the .cu files, which include no torch header, speak of
// element types and streams.
#pragma once
#include <cstdint>

namespace genimg_fast::cuda {

enum class DType { float32, float16, bfloat16 };

// Under autocast an input of a half type has a loss, and may have a target, in float32.
struct LossDTypes {
  DType input, target, loss;
};

using Stream = void*;  // a cudaStream_t

}  // namespace genimg_fast::cuda

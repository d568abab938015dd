// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>

#include "cuda/channel_vector.h"

namespace genimg_fast::cuda {

// gradient *= upstream[0], both on the GPU.
void scale_gradient(DType dtype, void* gradient, ChannelVector upstream, int64_t numel, Stream stream);

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#pragma once
#include "common/deconvolution.h"
#include "cuda/dtype.h"

namespace genimg_fast::cuda {

// One value a channel, a parameter or a running statistic, in the dtype that the model keeps it in: a model of half
// types has these in half too, and to convert them would take as many launches again as the layers themselves.  Kernels
// read them once, at their start or in their epilogue, and so choose the type at run time: nothing is compiled once
// more.
struct ChannelVector {
  const void* values = nullptr;  // [channels] or null
  DType dtype = DType::float32;

  GENIMG_FAST_HOST_DEVICE explicit operator bool() const { return values != nullptr; }
  GENIMG_FAST_HOST_DEVICE float operator[](int64_t channel) const;  // in platform.cuh
};

// One that a kernel writes: a running statistic, or the gradient of a parameter.
struct MutableChannelVector {
  void* values = nullptr;  // [channels] or null
  DType dtype = DType::float32;

  // Each rounds once, and does nothing where there are no values.
  GENIMG_FAST_HOST_DEVICE void store(int64_t channel, float value) const;  // in platform.cuh
  // Takes a step of `momentum` towards `value`.
  GENIMG_FAST_HOST_DEVICE void move_towards(int64_t channel, float value, float momentum) const;  // in platform.cuh
};

using ChannelAffine = genimg_fast::ChannelAffine<float, ChannelVector>;

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define GENIMG_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GENIMG_FAST_HOST_DEVICE inline
#endif

namespace genimg_fast {

// The numbers are those of ACTIVATIONS in genimg_fast/ops/_check.py.
enum class Activation : int64_t { none = 0, relu = 1, leaky_relu = 2, tanh = 3, sigmoid = 4 };

// Written so that NaN travels, as in torch: every comparison with NaN is false.
GENIMG_FAST_HOST_DEVICE float activate(Activation activation, float slope, float x) {
  switch (activation) {
    case Activation::relu:
      return x < 0 ? 0.0f : x;
    case Activation::leaky_relu:
      return x > 0 ? x : x * slope;
    case Activation::tanh:
      return tanhf(x);
    case Activation::sigmoid:
      return 1.0f / (1.0f + expf(-x));
    default:
      return x;
  }
}

// The gradient at x, from x and not from the output: the backward pass recomputes x and keeps nothing else.  ReLU
// chooses and does not multiply, as in torch: where x <= 0 an infinite gradient is 0, and where x is NaN it passes.
GENIMG_FAST_HOST_DEVICE float activate_backward(Activation activation, float slope, float grad, float x) {
  switch (activation) {
    case Activation::relu:
      return x <= 0 ? 0.0f : grad;
    case Activation::leaky_relu:
      return x > 0 ? grad : grad * slope;
    case Activation::tanh: {
      const float y = tanhf(x);
      return grad * (1.0f - y * y);
    }
    case Activation::sigmoid: {
      const float y = 1.0f / (1.0f + expf(-x));
      return grad * (y * (1.0f - y));
    }
    default:
      return grad;
  }
}

}  // namespace genimg_fast

// SPDX-License-Identifier: MIT
// common/activation.h on vectors; for files compiled through foreach_isa.h, hence no include guard.  The activation is
// a template argument, so that an epilogue has no branch: with_activation() turns the run-time value into it, once a
// call.
#include "common/activation.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <Activation A>
struct ActivationTag {
  static constexpr Activation value = A;
};

template <typename Body>
GF_INLINE void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none:
      return body(ActivationTag<Activation::none>{});
    case Activation::relu:
      return body(ActivationTag<Activation::relu>{});
    case Activation::leaky_relu:
      return body(ActivationTag<Activation::leaky_relu>{});
    case Activation::tanh:
      return body(ActivationTag<Activation::tanh>{});
    case Activation::sigmoid:
      return body(ActivationTag<Activation::sigmoid>{});
  }
}

template <Activation A, typename T>
GF_INLINE Vec<T> activate(Vec<T> x, T slope) {
  if constexpr (A == Activation::relu) return x < 0 ? Vec<T>{} : x;
  if constexpr (A == Activation::leaky_relu) return x > 0 ? x : x * slope;
  if constexpr (A == Activation::tanh) return tanh(x);
  if constexpr (A == Activation::sigmoid) return sigmoid<T>(x);
  return x;
}

// The activation as a run-time value, for large kernels that are not worth compiling once an activation: one branch for
// all of x[0 ... Count).
template <typename T>
__attribute__((noinline)) void activate_slowly(Activation activation, Vec<T>* x, int count) {
  for (int i = 0; i < count; ++i)
    x[i] = activation == Activation::tanh ? activate<Activation::tanh, T>(x[i], T(0))
                                          : activate<Activation::sigmoid, T>(x[i], T(0));
}
template <typename T, int Count>
GF_INLINE void activate_all(Activation activation, Vec<T>* x, T slope) {
  if (activation == Activation::relu) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) x[i] = activate<Activation::relu, T>(x[i], slope);
  } else if (activation == Activation::leaky_relu) {
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) x[i] = activate<Activation::leaky_relu, T>(x[i], slope);
  } else if (activation != Activation::none) {
    Vec<T> copy[Count];  // x itself stays in registers: its address goes nowhere
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) copy[i] = x[i];
    activate_slowly<T>(activation, copy, Count);
#pragma GCC unroll 8
    for (int i = 0; i < Count; ++i) x[i] = copy[i];
  }
}

template <typename T>
GF_INLINE Vec<T> activate(Activation activation, Vec<T> x, T slope) {
  activate_all<T, 1>(activation, &x, slope);
  return x;
}

// The gradient before the activation, given activate(x), which for a slope >= 0 has the sign of x.
template <Activation A, typename T>
GF_INLINE Vec<T> activate_backward_from_output(Vec<T> grad, Vec<T> y, T slope) {
  if constexpr (A == Activation::relu) return y <= 0 ? Vec<T>{} : grad;
  if constexpr (A == Activation::leaky_relu) return y > 0 ? grad : grad * slope;
  if constexpr (A == Activation::tanh) return grad * (broadcast(T(1)) - y * y);
  if constexpr (A == Activation::sigmoid) return grad * (y * (broadcast(T(1)) - y));
  return grad;
}

template <Activation A, typename T>
GF_INLINE Vec<T> activate_backward(Vec<T> grad, Vec<T> x, T slope) {
  if constexpr (A == Activation::tanh) return activate_backward_from_output<A, T>(grad, tanh(x), slope);
  if constexpr (A == Activation::sigmoid) return activate_backward_from_output<A, T>(grad, sigmoid<T>(x), slope);
  return activate_backward_from_output<A, T>(grad, x, slope);  // the sign is that of the output
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

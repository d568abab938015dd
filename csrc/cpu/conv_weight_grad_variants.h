// SPDX-License-Identifier: MIT
// What each variant of the weight gradient offers to conv_weight_grad_kernel.cpp, which chooses among them.
#pragma once
#include "cpu/conv_weight_grad_kernel.h"

namespace genimg_fast::cpu {

template <typename T>
struct WeightGradCall {
  const Convolution& conv;
  const T* small;
  const Prologue<T>& small_prologue;
  const T* large;
  const Prologue<T>& large_prologue;
  T* grad_weight;
};

namespace direct {
template <typename T>
void run(const WeightGradCall<T>& call);
}  // namespace direct

namespace toom_cook {
bool supports_weight_grad(const Convolution& conv, int64_t m);
template <typename T>
void run(const WeightGradCall<T>& call, int64_t m);
}  // namespace toom_cook

namespace unpacked {
template <typename T>
bool supports_weight_grad(const Convolution& conv);
template <typename T>
void run(const WeightGradCall<T>& call);
}  // namespace unpacked

}  // namespace genimg_fast::cpu

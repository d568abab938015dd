// SPDX-License-Identifier: MIT
// Chooses how the gradient of a convolution's weight is computed.
#include "cpu/conv_weight_grad_kernel.h"

#include <algorithm>
#include <type_traits>

#include "cpu/conv_weight_grad_variants.h"

namespace genimg_fast::cpu {

template <typename T>
void conv_weight_grad(const Convolution& conv, const T* small, const Prologue<T>& small_prologue, const T* large,
                      const Prologue<T>& large_prologue, T* grad_weight) {
  const int64_t weights = conv.out_channels * conv.in_channels * conv.taps();
  if (weights == 0 || conv.pixels() == 0) return void(std::fill_n(grad_weight, weights, T(0)));
  const WeightGradCall<T> call{conv, small, small_prologue, large, large_prologue, grad_weight};
  if constexpr (std::is_same_v<T, float>)
    if (is_toom_cook(forced_variant()) && toom_cook::supports_weight_grad(conv))
      return toom_cook::run(call, tile_edge(forced_variant()));
  direct::run(call);
}

#define INSTANTIATE(T)                                                                                        \
  template void conv_weight_grad<T>(const Convolution&, const T*, const Prologue<T>&, const T*, const Prologue<T>&, \
                                    T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

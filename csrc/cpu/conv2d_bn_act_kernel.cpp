// SPDX-License-Identifier: MIT
// Chooses how a convolution is computed.
#include "cpu/conv2d_bn_act_kernel.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/conv2d_variants.h"

namespace genimg_fast::cpu {
namespace {

template <typename T>
bool supports(const Convolution& conv, Variant variant) {
  if (is_toom_cook(variant)) return std::is_same_v<T, float> && toom_cook::supports(conv);
  return variant == Variant::direct || (variant == Variant::narrow && direct::supports_narrow(conv));
}

template <typename T>
int64_t packed_count(const Convolution& conv, Variant variant) {
  if constexpr (std::is_same_v<T, float>)
    if (is_toom_cook(variant)) return toom_cook::packed_count<T>(conv, tile_edge(variant));
  return direct::packed_count<T>(conv, variant == Variant::narrow);
}

template <typename T>
Variant choose(const Convolution& conv, bool) {
  const Variant asked = forced_variant();
  if (asked != Variant::automatic) return supports<T>(conv, asked) ? asked : Variant::direct;
  if (supports<T>(conv, Variant::toom_cook_4) && winograd_allowed() && conv.in_channels >= 32)
    return Variant::toom_cook_4;
  return supports<T>(conv, Variant::narrow) ? Variant::narrow : Variant::direct;
}

template <typename T>
void run(const Conv2dCall<T>& call, Variant variant, std::vector<ChannelSums<T>>* sums) {
  if constexpr (std::is_same_v<T, float>)
    if (is_toom_cook(variant)) return toom_cook::run(call, tile_edge(variant), sums);
  direct::run(call, variant == Variant::narrow, sums);
}

}  // namespace

template <typename T>
PackedLayout choose_layout(const Convolution& conv, bool packed_once) {
  const Variant variant = choose<T>(conv, packed_once);
  return {variant, active_isa(), packed_count<T>(conv, variant)};
}

template <typename T>
void pack_weight(const Convolution& conv, const PackedLayout& layout, WeightOrder order, const T* weight, T* packed) {
  if constexpr (std::is_same_v<T, float>)
    if (is_toom_cook(layout.variant)) return toom_cook::pack(conv, tile_edge(layout.variant), order, weight, packed);
  direct::pack(conv, layout.variant == Variant::narrow, order, weight, packed);
}

template <typename T>
void conv2d(const Convolution& conv, const T* input, const Prologue<T>& prologue, const PackedLayout& layout,
            const T* packed, const Epilogue<T>& epilogue, T* output, T* mean, T* var) {
  const Conv2dCall<T> call{conv, input, prologue, packed, epilogue, output};
  std::vector<ChannelSums<T>> sums;
  run(call, layout.variant, mean ? &sums : nullptr);
  if (mean) combine(sums, conv.out_channels, mean, var);
}

#define INSTANTIATE(T)                                                                                     \
  template PackedLayout choose_layout<T>(const Convolution&, bool);                                        \
  template void pack_weight<T>(const Convolution&, const PackedLayout&, WeightOrder, const T*, T*);        \
  template void conv2d<T>(const Convolution&, const T*, const Prologue<T>&, const PackedLayout&, const T*, \
                          const Epilogue<T>&, T*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

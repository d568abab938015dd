// SPDX-License-Identifier: MIT
// Chooses how a transposed convolution is computed.
#include "cpu/conv_transpose2d_bn_act_kernel.h"

#include <atomic>
#include <type_traits>
#include <vector>

#include "cpu/aligned_array.h"
#include "cpu/conv_transpose2d_variants.h"

namespace genimg_fast::cpu {
namespace {

std::atomic<int64_t> forced{0};
std::atomic<bool> winograd{true};

template <typename T>
Variant choose(const Deconvolution& conv) {
  const Variant asked = static_cast<Variant>(forced.load());
  if ((asked == Variant::toom_cook_2 || asked == Variant::toom_cook_4) && toom_cook::supports(conv) &&
      std::is_same_v<T, float>)
    return asked;
  if (asked == Variant::narrow && narrow::supports(conv)) return asked;
  return Variant::direct;
}

bool is_toom_cook(Variant variant) { return variant == Variant::toom_cook_2 || variant == Variant::toom_cook_4; }
int64_t tile_edge(Variant variant) { return variant == Variant::toom_cook_2 ? 2 : 4; }

template <typename T>
void run(const ConvolutionCall<T>& call, Variant variant, std::vector<ChannelSums<T>>* sums) {
  if constexpr (std::is_same_v<T, float>)
    if (is_toom_cook(variant)) return toom_cook::run(call, tile_edge(variant), sums);
  if (variant == Variant::narrow) return narrow::run(call, sums);
  direct::run(call, sums);
}

}  // namespace

void force_variant(int64_t variant_or_zero) { forced = variant_or_zero; }
int64_t forced_variant() { return forced; }
void allow_winograd(bool allowed) { winograd = allowed; }
bool winograd_allowed() { return winograd; }

template <typename T>
PackedLayout choose_layout(const Deconvolution& conv, bool) {
  const Variant variant = choose<T>(conv);
  const Isa isa = active_isa();
  if constexpr (std::is_same_v<T, float>)
    if (is_toom_cook(variant)) return {variant, isa, toom_cook::packed_count<T>(conv, tile_edge(variant))};
  if (variant == Variant::narrow) return {variant, isa, narrow::packed_count<T>(conv)};
  return {variant, isa, direct::packed_count<T>(conv)};
}

template <typename T>
void pack_weight(const Deconvolution& conv, const PackedLayout& layout, const T* weight, T* packed) {
  if constexpr (std::is_same_v<T, float>)
    if (is_toom_cook(layout.variant)) return toom_cook::pack(conv, tile_edge(layout.variant), weight, packed);
  if (layout.variant == Variant::narrow) return narrow::pack(conv, weight, packed);
  direct::pack(conv, weight, packed);
}

template <typename T>
void conv_transpose2d(const Deconvolution& conv, const T* input, const PackedLayout& layout, const T* packed,
                      const Epilogue<T>& epilogue, T* output, T* mean, T* var) {
  const ConvolutionCall<T> call{conv, input, packed, epilogue, output};
  std::vector<ChannelSums<T>> sums;
  run(call, layout.variant, mean ? &sums : nullptr);
  if (mean) combine(sums, conv.out_channels, mean, var);
}

template <typename T>
void conv_transpose2d(const Deconvolution& conv, const T* input, const T* weight, const Epilogue<T>& epilogue,
                      T* output, T* mean, T* var) {
  const PackedLayout layout = choose_layout<T>(conv, true);
  auto packed = aligned_array<T>(layout.count);
  pack_weight(conv, layout, weight, packed.get());
  conv_transpose2d(conv, input, layout, packed.get(), epilogue, output, mean, var);
}

#define INSTANTIATE(T)                                                                                            \
  template PackedLayout choose_layout<T>(const Deconvolution&, bool);                                             \
  template void pack_weight<T>(const Deconvolution&, const PackedLayout&, const T*, T*);                          \
  template void conv_transpose2d<T>(const Deconvolution&, const T*, const PackedLayout&, const T*,                \
                                    const Epilogue<T>&, T*, T*, T*);                                              \
  template void conv_transpose2d<T>(const Deconvolution&, const T*, const T*, const Epilogue<T>&, T*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

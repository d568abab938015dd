// SPDX-License-Identifier: MIT
// Chooses how a convolution is computed.
#include "cpu/conv2d_bn_act_kernel.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/conv2d_variants.h"

namespace genimg_fast::cpu {
namespace {

template <typename T>
bool supports(const Convolution& conv, Variant variant) {
  return is_toom_cook(variant) ? toom_cook::supports(conv, tile_edge(variant)) : direct::supports<T>(conv, variant);
}

template <typename T>
int64_t packed_count(const Convolution& conv, Variant variant) {
  if (is_toom_cook(variant)) return toom_cook::packed_count<T>(conv, tile_edge(variant));
  return direct::packed_count<T>(conv, variant);
}

// What a variant costs, in multiply-adds of one vector.  The weights of the other steps, each per vector handled where
// it does not say otherwise, were fitted to the least times of DCGAN's layers and of their neighbours on one core, 1 to
// 64 images, those of AVX-512 and AVX2 together.
constexpr double kPackByTap = 60;                 // direct and narrow: 64 bytes of weights
constexpr double kPackByPoint = 20;               // Toom-Cook: a weight
constexpr double kReadCached = 6, kReadFar = 20;  // 64 bytes of weights, from L2 or from beyond
constexpr double kBehindRead = 0.55;              // Toom-Cook: of a multiply-add, where reading takes longer
constexpr double kGather = 7, kGatherRun = 20;    // direct and narrow: a vector of a patch; a kernel row of it besides
constexpr double kDot = 1.3;                      // narrow, unpacked: a vector of a patch and an output channel
constexpr double kTransposeTaps = 7;              // unpacked: a vector of a patch
constexpr double kFinish = 30;                    // direct: an output; narrow, unpacked: an output value
constexpr double kEvaluate = 25;                  // Toom-Cook: a point of the input
constexpr double kPartialVector = 3;              // Toom-Cook: the last channels, if they do not fill a vector
constexpr double kInterpolate = 35;               // Toom-Cook: a point of the products
constexpr double kCachedBytes = 4 << 20;          // weights that are still near when they are read again

template <typename T>
double cost(const Convolution& conv, Variant variant, bool packed_once) {
  const double lanes = vector_bytes(active_isa()) / sizeof(T);
  const double outputs = std::ceil(conv.out_channels / lanes);
  const double batch = conv.batch, count = packed_count<T>(conv, variant), weights = count / lanes;
  const double lines = lanes * sizeof(T) / 64;  // in a vector
  const double by_weight = is_toom_cook(variant) ? kPackByPoint : kPackByTap * lines;
  const double packing = packed_once && variant != Variant::unpacked ? weights * by_weight : 0;
  // Weights are read once for all rows of a block.  Toom-Cook fetches the next panel while it multiplies.
  const double read = (count * sizeof(T) > kCachedBytes ? kReadFar : kReadCached) * lines;
  if (is_toom_cook(variant)) {
    // A part of a vector is read lane by lane.
    const double inputs =
        std::floor(conv.in_channels / lanes) + (std::fmod(conv.in_channels, lanes) > 0 ? kPartialVector : 0);
    const double m = tile_edge(variant), phases = conv.y.stride * conv.x.stride;
    const double edge = m + static_cast<double>(conv.y.phase_taps()) - 1;
    const double tiles = batch * std::ceil(conv.y.output / m) * std::ceil(conv.x.output / m);
    const double live_of_axis = toom_cook::has_short_phase(conv) ? 1 - 1 / (2 * edge) : 1;  // of its points
    return packing + weights * live_of_axis * live_of_axis * std::max(tiles, read + kBehindRead * tiles) +
           tiles * edge * edge * (kEvaluate * phases * inputs + kInterpolate * outputs);
  }
  const double rows = conv.pixels(), vectors = std::ceil(conv.taps() * conv.in_channels / lanes);
  const double runs = conv.y.kernel * (conv.x.dilation == 1 ? 1 : conv.x.kernel);
  const double gathering = rows * (vectors * kGather + runs * kGatherRun);
  if (variant == Variant::narrow) return packing + gathering + rows * conv.out_channels * (vectors * kDot + kFinish);
  if (variant == Variant::unpacked)
    return gathering + rows * vectors * kTransposeTaps + weights * (rows * kDot + kReadFar * lines) +
           rows * conv.out_channels * kFinish;
  return packing + gathering + weights * (rows + read) + rows * outputs * kFinish;
}

template <typename T>
Variant choose(const Convolution& conv, bool packed_once, WeightOrder order) {
  const Variant asked = forced_variant();
  if (asked == Variant::unpacked && order == WeightOrder::mirrored) return Variant::direct;
  if (asked != Variant::automatic) return asked;
  Variant best = Variant::direct;
  double least = cost<T>(conv, best, packed_once);
  for (Variant variant : {Variant::toom_cook_2, Variant::toom_cook_4, Variant::narrow, Variant::unpacked}) {
    if (!supports<T>(conv, variant) || (is_toom_cook(variant) && !may_toom_cook<T>())) continue;
    if (variant == Variant::unpacked && (!packed_once || order == WeightOrder::mirrored)) continue;
    const double c = cost<T>(conv, variant, packed_once);
    if (c < least) {
      least = c;
      best = variant;
    }
  }
  return best;
}

template <typename T>
void run(const Conv2dCall<T>& call, Variant variant, std::vector<ChannelSums<T>>* sums) {
  if (is_toom_cook(variant)) return toom_cook::run(call, tile_edge(variant), sums);
  direct::run(call, variant, sums);
}

}  // namespace

template <typename T>
PackedLayout layout_of_variant(const Convolution& conv, Variant variant) {
  if (!supports<T>(conv, variant)) variant = Variant::direct;
  return {variant, active_isa(), packed_count<T>(conv, variant)};
}

template <typename T>
PackedLayout choose_layout(const Convolution& conv, bool packed_once, WeightOrder order) {
  return layout_of_variant<T>(conv, choose<T>(conv, packed_once, order));
}

template <typename T>
void pack_weight(const Convolution& conv, const PackedLayout& layout, WeightOrder order, const T* weight, T* packed) {
  if (is_toom_cook(layout.variant)) return toom_cook::pack(conv, tile_edge(layout.variant), order, weight, packed);
  direct::pack(conv, layout.variant, order, weight, packed);
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
  template PackedLayout layout_of_variant<T>(const Convolution&, Variant);                                 \
  template PackedLayout choose_layout<T>(const Convolution&, bool, WeightOrder);                           \
  template void pack_weight<T>(const Convolution&, const PackedLayout&, WeightOrder, const T*, T*);        \
  template void conv2d<T>(const Convolution&, const T*, const Prologue<T>&, const PackedLayout&, const T*, \
                          const Epilogue<T>&, T*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

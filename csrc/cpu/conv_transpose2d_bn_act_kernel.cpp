// SPDX-License-Identifier: MIT
// Chooses how a transposed convolution is computed.
#include "cpu/conv_transpose2d_bn_act_kernel.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "cpu/conv_transpose2d_variants.h"

namespace genimg_fast::cpu {
namespace {

std::atomic<Variant> forced{Variant::automatic};
std::atomic<bool> winograd{true};

bool supports(const Deconvolution& conv, Variant variant) {
  if (is_toom_cook(variant))
    return toom_cook::supports(conv, tile_edge(variant)) || subpixel::supports(conv, tile_edge(variant));
  if (variant == Variant::unpacked) return unpacked::supports(conv);
  return variant == Variant::direct || (variant == Variant::narrow && narrow::supports(conv));
}

int64_t weight_count(const Deconvolution& conv) {
  return conv.in_channels * conv.out_channels * conv.y.kernel * conv.x.kernel;
}

template <typename T>
int64_t packed_count(const Deconvolution& conv, Variant variant) {
  if (is_toom_cook(variant))
    return subpixel::is_subpixel(conv) ? subpixel::packed_count<T>(conv, tile_edge(variant))
                                       : toom_cook::packed_count<T>(conv, tile_edge(variant));
  if (variant == Variant::narrow) return narrow::packed_count<T>(conv);
  if (variant == Variant::unpacked) return weight_count(conv);
  return direct::packed_count<T>(conv);
}

// What a variant costs, in multiply-adds of one vector.  The weights of the other steps, each per vector handled, were
// fitted to the least times of 576 runs on one core (1 to 64 images of 4 to 64 pixels, 16 to 1024 channels), those of
// AVX-512 and AVX2 together: the rule's choice takes 1.005 times the best variant's time on average, 1.3 at worst.
constexpr double kPackByTap = 40, kPackByPoint = 20;  // direct and narrow; Toom-Cook
constexpr double kReadCached = 6, kReadFar = 24;      // 64 bytes of weights from L2; from beyond
constexpr double kGatherInput = 30;                   // direct: one tap of one pixel
constexpr double kFinish = 125;                       // direct: one output
constexpr double kEvaluateInput = 24;                 // Toom-Cook: one point of one tile
constexpr double kFinishPoint = 28;                   // Toom-Cook: one point of one tile
constexpr double kAddRun = 20;                        // narrow: one tap of one position
constexpr double kAddUnpacked = 2;                    // unpacked: a value of a product
constexpr double kCachedBytes = 3 << 19;              // what of L2 weights may fill

template <typename T>
double cost(const Deconvolution& conv, Variant variant, bool packed_once) {
  const double lanes = vector_bytes(active_isa()) / sizeof(T);
  const double inputs = std::ceil(conv.in_channels / lanes), outputs = std::ceil(conv.out_channels / lanes);
  const double batch = conv.batch, count = packed_count<T>(conv, variant), weights = count / lanes;
  // To pack the taps that an input of one pixel meets takes as long as to pack them all: they share cache lines.
  const double by_tap = std::max(weights, weight_count(conv) / lanes) * kPackByTap;
  const double packing = packed_once ? (is_toom_cook(variant) ? weights * kPackByPoint : by_tap) : 0;
  // Weights are read once for all rows of a block, which has to last until the next ones are there.
  const double read = (count * sizeof(T) > kCachedBytes ? kReadFar : kReadCached) * lanes * sizeof(T) / 64;
  if (is_toom_cook(variant)) {
    const bool subpixel = subpixel::is_subpixel(conv);
    const double m = tile_edge(variant), edge = m + (subpixel ? 2 : 1), points = edge * edge;
    auto tiles_of = [&](const DeconvolutionAxis& a) {
      return std::ceil((subpixel ? (a.output + 1) / 2 : a.input) / m);
    };
    const double tiles = batch * tiles_of(conv.y) * tiles_of(conv.x);
    return packing + weights * std::max(tiles, read) +
           tiles * points * (kEvaluateInput * inputs + kFinishPoint * 4 * outputs);
  }
  if (variant == Variant::narrow) {
    auto taps = [](const DeconvolutionAxis& axis) { return std::ceil(axis.kernel / static_cast<double>(axis.stride)); };
    const double rows = batch * conv.y.input, width = conv.x.input, positions = conv.x.output / conv.x.stride + 1;
    const double runs = batch * conv.y.output * positions * std::ceil(conv.x.stride * conv.out_channels / lanes);
    return packing + rows * weights * std::max(width, read) + runs * taps(conv.y) * taps(conv.x) * kAddRun;
  }
  if (variant == Variant::unpacked) {
    const double rows = batch * conv.y.input * conv.x.input;
    return weights * (read + rows) + rows * count / conv.in_channels * kAddUnpacked +
           batch * conv.y.output * conv.x.output * outputs * kFinish;
  }
  double sum = packing;
  for (int64_t phase = 0; phase < conv.phases(); ++phase) {
    const double rows = conv.rows(phase), depth = conv.depth(phase), columns = 2 * std::ceil(outputs / 2);
    sum += depth * columns * std::max(rows, read) + rows * (depth / lanes * kGatherInput + outputs * kFinish);
  }
  return sum;
}

template <typename T>
Variant choose(const Deconvolution& conv, bool packed_once) {
  const Variant asked = forced;
  if (asked != Variant::automatic) return asked;
  Variant best = Variant::direct;
  double least = cost<T>(conv, best, packed_once);
  for (Variant variant : {Variant::toom_cook_2, Variant::toom_cook_4, Variant::narrow, Variant::unpacked}) {
    if (!supports(conv, variant) || (is_toom_cook(variant) && !may_toom_cook<T>())) continue;
    if (variant == Variant::unpacked && !packed_once) continue;
    const double c = cost<T>(conv, variant, packed_once);
    if (c < least) {
      least = c;
      best = variant;
    }
  }
  return best;
}

template <typename T>
void run(const ConvTranspose2dCall<T>& call, Variant variant, std::vector<ChannelSums<T>>* sums) {
  if (is_toom_cook(variant))
    return subpixel::is_subpixel(call.conv) ? subpixel::run(call, tile_edge(variant), sums)
                                            : toom_cook::run(call, tile_edge(variant), sums);
  if (variant == Variant::narrow) return narrow::run(call, sums);
  if (variant == Variant::unpacked) return unpacked::run(call, sums);
  direct::run(call, sums);
}

}  // namespace

void force_variant(Variant variant) { forced = variant; }
Variant forced_variant() { return forced; }
void allow_winograd(bool allowed) { winograd = allowed; }
bool winograd_allowed() { return winograd; }

template <typename T>
PackedLayout layout_of_variant(const Deconvolution& conv, Variant variant) {
  if (!supports(conv, variant)) variant = Variant::direct;
  return {variant, active_isa(), packed_count<T>(conv, variant)};
}

template <typename T>
PackedLayout choose_layout(const Deconvolution& conv, bool packed_once) {
  return layout_of_variant<T>(conv, choose<T>(conv, packed_once));
}

template <typename T>
void pack_weight(const Deconvolution& conv, const PackedLayout& layout, const T* weight, T* packed) {
  if (is_toom_cook(layout.variant))
    return subpixel::is_subpixel(conv) ? subpixel::pack(conv, tile_edge(layout.variant), weight, packed)
                                       : toom_cook::pack(conv, tile_edge(layout.variant), weight, packed);
  if (layout.variant == Variant::narrow) return narrow::pack(conv, weight, packed);
  if (layout.variant == Variant::unpacked) return void(std::copy_n(weight, layout.count, packed));
  direct::pack(conv, weight, packed);
}

template <typename T>
void conv_transpose2d(const Deconvolution& conv, const T* input, const Prologue<T>& prologue,
                      const PackedLayout& layout, const T* packed, const Epilogue<T>& epilogue, T* output, T* mean,
                      T* var, MemoryOrder order) {
  const ConvTranspose2dCall<T> call{conv, input, prologue, packed, epilogue, output, order};
  std::vector<ChannelSums<T>> sums;
  run(call, layout.variant, mean ? &sums : nullptr);
  if (mean) combine(sums, conv.out_channels, mean, var);
}

#define INSTANTIATE(T)                                                                                                 \
  template PackedLayout layout_of_variant<T>(const Deconvolution&, Variant);                                           \
  template PackedLayout choose_layout<T>(const Deconvolution&, bool);                                                  \
  template void pack_weight<T>(const Deconvolution&, const PackedLayout&, const T*, T*);                               \
  template void conv_transpose2d<T>(const Deconvolution&, const T*, const Prologue<T>&, const PackedLayout&, const T*, \
                                    const Epilogue<T>&, T*, T*, T*, MemoryOrder);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

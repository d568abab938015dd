// SPDX-License-Identifier: MIT
// Chooses how the gradient of a convolution's weight is computed.
#include "cpu/conv_weight_grad_kernel.h"

#include <algorithm>
#include <cmath>

#include "cpu/conv_weight_grad_variants.h"

namespace genimg_fast::cpu {
namespace {

template <typename T>
bool supports(const Convolution& conv, Variant variant) {
  if (variant == Variant::unpacked) return unpacked::supports_weight_grad<T>(conv);
  return variant == Variant::direct ||
         (is_toom_cook(variant) && toom_cook::supports_weight_grad(conv, tile_edge(variant)));
}

// What a variant costs, in multiply-adds of one vector.  The weights of the other steps, each per vector handled, were
// fitted to the time of DCGAN's layers and their like on one AVX-512 core.
constexpr double kGather = 6;                           // direct: one tap of one pixel
constexpr double kEvaluate = 14;                        // Toom-Cook: one point
constexpr double kGatherInOrder = 14;                   // unpacked: one tap of one pixel
constexpr double kWrite = 8;                            // unpacked: one tap
constexpr double kFinishTaps = 15;                      // direct: one tap
constexpr double kFinishPoints = 10;                    // Toom-Cook: one point
constexpr double kFewestRows = 4;                       // fewer sums at a time wait for each other
constexpr double kBlockRows = 128, kBlockColumns = 64;  // Toom-Cook: what an evaluated value serves

template <typename T>
double cost(const Convolution& conv, Variant variant) {
  const double lanes = vector_bytes(active_isa()) / sizeof(T), taps = conv.taps();
  const double channels = conv.out_channels, rows = std::max(channels, kFewestRows),
               small = std::ceil(channels / lanes);
  if (!is_toom_cook(variant)) {
    const double columns = std::ceil(taps * conv.in_channels / lanes);
    if (variant == Variant::unpacked)
      return conv.pixels() * (channels + kGatherInOrder) * columns + kWrite * channels * columns;
    return conv.pixels() * (rows * columns + kGather * (columns + small)) + kFinishTaps * channels * columns;
  }
  const double stride = conv.y.stride, m = tile_edge(variant), edge = m + conv.y.phase_taps() - 1;
  const double tiles = conv.batch * std::ceil(conv.y.output / m) * std::ceil(conv.x.output / m);
  const double columns = stride * stride * std::ceil(conv.in_channels / lanes);
  const double evaluations =
      small * std::ceil(columns * lanes / kBlockColumns) + columns * std::ceil(channels / kBlockRows);
  return edge * edge * (tiles * (rows * columns + kEvaluate * evaluations) + kFinishPoints * channels * columns);
}

template <typename T>
Variant choose(const Convolution& conv) {
  const Variant asked = forced_variant();
  if (asked != Variant::automatic) return supports<T>(conv, asked) ? asked : Variant::direct;
  Variant best = Variant::direct;
  for (Variant variant : {Variant::toom_cook_2, Variant::toom_cook_4, Variant::unpacked}) {
    if (!supports<T>(conv, variant) || (is_toom_cook(variant) && !may_toom_cook<T>())) continue;
    if (cost<T>(conv, variant) < cost<T>(conv, best)) best = variant;
  }
  return best;
}

}  // namespace

template <typename T>
void conv_weight_grad(const Convolution& conv, const T* small, const Prologue<T>& small_prologue, const T* large,
                      const Prologue<T>& large_prologue, T* grad_weight) {
  const int64_t weights = conv.out_channels * conv.in_channels * conv.taps();
  if (weights == 0 || conv.pixels() == 0) return void(std::fill_n(grad_weight, weights, T(0)));
  const WeightGradCall<T> call{conv, small, small_prologue, large, large_prologue, grad_weight};
  const Variant variant = choose<T>(conv);
  if (is_toom_cook(variant)) return toom_cook::run(call, tile_edge(variant));
  if (variant == Variant::unpacked) return unpacked::run(call);
  direct::run(call);
}

#define INSTANTIATE(T) \
  template void conv_weight_grad<T>(const Convolution&, const T*, const Prologue<T>&, const T*, const Prologue<T>&, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

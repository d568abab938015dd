// SPDX-License-Identifier: MIT
// Transposed convolution with kernel 5 and stride 2 as a convolution with kernel 3 and stride 1 that makes four images,
// one a phase of the output (Shi et al., 2016), by the Toom-Cook products of conv2d_toom_cook.cpp.
//
//      output row    0   1   2   3   4   5            of padding 2:   phase 0   taps 4, 2, 0   of input j - 1, j, j + 1
//      phase         0   1   0   1   0   1                            phase 1   taps    3, 1   of input        j, j + 1
//      j             0   0   1   1   2   2
//
// What a phase has no tap for is 0: 36 places instead of 25, of which M = 2 multiplies 16 and M = 4 multiplies 9.
// Channels of the convolution: [phase][channel], each phase in whole vectors.
#include <algorithm>

#include "cpu/conv2d_variants.h"
#include "cpu/conv_transpose2d_variants.h"
#include "cpu/parallel.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu::subpixel {
namespace {

constexpr int64_t kPhases = 4, kTaps = 3;

// How far the last tap of an output position's window lies beyond its j.
int64_t reach(const DeconvolutionAxis& axis) { return (axis.padding + 1) / 2; }

template <typename T>
SubpixelOutput output_of(const Deconvolution& conv) {
  const int64_t lanes = vector_bytes(active_isa()) / static_cast<int64_t>(sizeof(T));
  return {conv.y.output, conv.x.output, conv.out_channels, (conv.out_channels + lanes - 1) / lanes * lanes};
}

Convolution convolution_of(const Deconvolution& conv, int64_t out_channels) {
  auto axis = [](const DeconvolutionAxis& a) {
    return ConvolutionAxis{a.input, (a.output + 1) / 2, kTaps, 1, kTaps - 1 - reach(a), 1};
  };
  return {conv.batch, conv.in_channels, out_channels, axis(conv.y), axis(conv.x)};
}

// The tap that a phase sees at a place of the window, or one beyond the kernel.
int64_t tap_at(const DeconvolutionAxis& axis, int64_t phase, int64_t place) {
  const int64_t t = axis.shift(phase, 0) - reach(axis) + kTaps - 1 - place;
  return t >= 0 && t < axis.taps(phase) ? axis.tap(phase, t) : axis.kernel;
}

}  // namespace

bool is_subpixel(const Deconvolution& conv) {
  auto fits = [](const DeconvolutionAxis& a) { return a.kernel == 5 && a.stride == 2 && a.padding <= 4; };
  return fits(conv.y) && fits(conv.x);
}

bool supports(const Deconvolution& conv, int64_t m) {
  return is_subpixel(conv) && toom_cook::supports(convolution_of(conv, conv.out_channels), m);
}

template <typename T>
int64_t packed_count(const Deconvolution& conv, int64_t m) {
  return toom_cook::packed_count<T>(convolution_of(conv, kPhases * output_of<T>(conv).padded_channels), m);
}

template <typename T>
void pack(const Deconvolution& conv, int64_t m, const T* weight, T* packed) {
  const int64_t padded = output_of<T>(conv).padded_channels, taps = kTaps * kTaps;
  const Convolution of_phases = convolution_of(conv, kPhases * padded);
  const auto [places] = thread_workspace<T>(of_phases.out_channels * conv.in_channels * taps);
  T* const to = places;
  parallel_for(0, of_phases.out_channels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t phase = row / padded, channel = row % padded;
      for (int64_t place = 0; place < taps; ++place) {
        const int64_t ky = tap_at(conv.y, phase / 2, place / kTaps), kx = tap_at(conv.x, phase % 2, place % kTaps);
        const bool inside = channel < conv.out_channels && ky < conv.y.kernel && kx < conv.x.kernel;
        for (int64_t k = 0; k < conv.in_channels; ++k)
          to[(row * conv.in_channels + k) * taps + place] =
              inside ? weight[((k * conv.out_channels + channel) * conv.y.kernel + ky) * conv.x.kernel + kx] : T(0);
      }
    }
  });
  toom_cook::pack(of_phases, m, WeightOrder::forward, to, packed);
}

template <typename T>
void run(const ConvTranspose2dCall<T>& call, int64_t m, std::vector<ChannelSums<T>>* sums) {
  const SubpixelOutput subpixel = output_of<T>(call.conv);
  const Convolution conv = convolution_of(call.conv, kPhases * subpixel.padded_channels);
  toom_cook::run(Conv2dCall<T>{conv, call.input, call.prologue, call.packed, call.epilogue, call.output, &subpixel}, m,
                 sums);
}

#define INSTANTIATE(T)                                                \
  template int64_t packed_count<T>(const Deconvolution&, int64_t);    \
  template void pack<T>(const Deconvolution&, int64_t, const T*, T*); \
  template void run<T>(const ConvTranspose2dCall<T>&, int64_t, std::vector<ChannelSums<T>>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu::subpixel

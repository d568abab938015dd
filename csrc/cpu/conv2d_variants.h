// SPDX-License-Identifier: MIT
// What each variant of the convolution offers to conv2d_bn_act_kernel.cpp, which chooses among them.  Every variant
// packs and runs as conv2d_bn_act_kernel.h says; `sums` is [parts][Cout] for channel_sums.h, sized and filled by run()
// if it is not null.
#pragma once
#include <vector>

#include "cpu/channel_sums.h"
#include "cpu/conv2d_bn_act_kernel.h"

namespace genimg_fast::cpu {

// A transposed convolution's output, whose rows and columns of a residue modulo 2 are an image of their own: a phase.
// They are the output channels of the convolution, [phase][padded channel], the phases of rows first.
struct SubpixelOutput {
  int64_t height, width, channels;
  int64_t padded_channels;  // whole vectors
};

template <typename T>
struct Conv2dCall {
  const Convolution& conv;
  const T* input;
  const Prologue<T>& prologue;
  const T* packed;
  const Epilogue<T>& epilogue;
  T* output;
  const SubpixelOutput* subpixel = nullptr;  // Toom-Cook: then what `output` is

  int64_t channels() const { return subpixel ? subpixel->channels : conv.out_channels; }
  int64_t sums_a_part() const { return (subpixel ? 4 : 1) * channels(); }  // the phases are parts of a channel's
};

// Finds the taps of an output channel and an input channel in a weight of either order.
struct WeightView {
  int64_t out_stride, in_stride, first_tap, tap_stride;

  WeightView(const Convolution& conv, WeightOrder order) {
    const int64_t taps = conv.taps();
    const bool forward = order == WeightOrder::forward;
    out_stride = forward ? conv.in_channels * taps : taps;
    in_stride = forward ? taps : conv.out_channels * taps;
    first_tap = forward ? 0 : taps - 1;
    tap_stride = forward ? 1 : -1;
  }
  int64_t at(int64_t out_channel, int64_t in_channel) const {
    return out_channel * out_stride + in_channel * in_stride + first_tap;
  }
};

namespace direct {
// Direct, narrow and unpacked differ in the tile alone: a panel of output channels, or dot products for them.
template <typename T>
bool supports(const Convolution& conv, Variant variant);
template <typename T>
int64_t packed_count(const Convolution& conv, Variant variant);
template <typename T>
void pack(const Convolution& conv, Variant variant, WeightOrder order, const T* weight, T* packed);
template <typename T>
void run(const Conv2dCall<T>& call, Variant variant, std::vector<ChannelSums<T>>* sums);
}  // namespace direct

namespace toom_cook {
bool supports(const Convolution& conv, int64_t m);
// Whether the second phase of an axis has a tap fewer than the first: its value at the last point, inf, is that tap's,
// 0, and not multiplied.
inline bool has_short_phase(const Convolution& conv) { return conv.y.stride == 2 && conv.y.kernel % 2 == 1; }
template <typename T>
int64_t packed_count(const Convolution& conv, int64_t m);
template <typename T>
void pack(const Convolution& conv, int64_t m, WeightOrder order, const T* weight, T* packed);
template <typename T>
void run(const Conv2dCall<T>& call, int64_t m, std::vector<ChannelSums<T>>* sums);
}  // namespace toom_cook

}  // namespace genimg_fast::cpu

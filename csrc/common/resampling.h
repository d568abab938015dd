// SPDX-License-Identifier: MIT
// A convolution of kernel 3 and a resampling by two as one convolution of kernel 4 and stride 2: one kernel's taps,
// forward and transposed.
//
// After nearest-neighbour upsampling it is a transposed convolution, each tap of which is the sum of those that meet
// the same pixel.  Before a mean over two by two pixels it is a plain one, each tap of which is the mean of those that
// do. The taps of the first are mirrored.
#pragma once
#include "common/activation.h"

namespace genimg_fast {

constexpr int kPlainTaps = 9, kResamplingTaps = 16;

template <typename T>
GENIMG_FAST_HOST_DEVICE void sum_taps(const T (&w)[kPlainTaps], T (&t)[kResamplingTaps]) {
  for (int y = 0; y < 4; ++y) {
    T row[3];
    for (int x = 0; x < 3; ++x) row[x] = y == 0 ? w[x] : y == 3 ? w[6 + x] : w[3 * (y - 1) + x] + w[3 * y + x];
    t[4 * y] = row[0];
    t[4 * y + 1] = row[0] + row[1];
    t[4 * y + 2] = row[1] + row[2];
    t[4 * y + 3] = row[2];
  }
}

// From the gradient of those sums to that of the taps.
template <typename T>
GENIMG_FAST_HOST_DEVICE void sum_taps_backward(const T (&g)[kResamplingTaps], T (&w)[kPlainTaps]) {
  for (int y = 0; y < 3; ++y) {
    T row[4];
    for (int x = 0; x < 4; ++x) row[x] = g[4 * y + x] + g[4 * (y + 1) + x];
    for (int x = 0; x < 3; ++x) w[3 * y + x] = row[x] + row[x + 1];
  }
}

// The sums of the values that `read` gives, one by one, of a plain kernel.
template <typename T, typename Read>
GENIMG_FAST_HOST_DEVICE void resampling_taps(bool pools, const Read& read, T (&t)[kResamplingTaps]) {
  T w[kPlainTaps];
  for (int k = 0; k < kPlainTaps; ++k) w[k] = read(pools ? k : kPlainTaps - 1 - k);
  sum_taps(w, t);
  if (!pools) return;
  for (T& value : t) value *= T(0.25);
}

// Gives `write` the gradients of a plain kernel, one by one.
template <typename T, typename Write>
GENIMG_FAST_HOST_DEVICE void resampling_taps_backward(bool pools, const T (&g)[kResamplingTaps], const Write& write) {
  T w[kPlainTaps];
  sum_taps_backward(g, w);
  for (int k = 0; k < kPlainTaps; ++k) write(pools ? k : kPlainTaps - 1 - k, pools ? T(0.25) * w[k] : w[k]);
}

}  // namespace genimg_fast

// SPDX-License-Identifier: MIT
// A convolution of kernel 3 on an image whose rows and columns were doubled, as a transposed convolution of kernel 4
// and stride 2: one kernel's taps, forward and transposed.
#pragma once
#include "common/activation.h"

namespace genimg_fast {

constexpr int kResizeTaps = 9, kTransposedTaps = 16;

// Each tap of the transposed convolution is the sum of those that meet the same pixel of the image.
template <typename T>
GENIMG_FAST_HOST_DEVICE void sum_taps(const T (&w)[kResizeTaps], T (&t)[kTransposedTaps]) {
  T rows[4][3];
  for (int x = 0; x < 3; ++x) {
    rows[0][x] = w[6 + x];
    rows[1][x] = w[6 + x] + w[3 + x];
    rows[2][x] = w[3 + x] + w[x];
    rows[3][x] = w[x];
  }
  for (int y = 0; y < 4; ++y) {
    t[4 * y] = rows[y][2];
    t[4 * y + 1] = rows[y][2] + rows[y][1];
    t[4 * y + 2] = rows[y][1] + rows[y][0];
    t[4 * y + 3] = rows[y][0];
  }
}

// From the gradient of those sums to that of the taps.
template <typename T>
GENIMG_FAST_HOST_DEVICE void sum_taps_backward(const T (&g)[kTransposedTaps], T (&w)[kResizeTaps]) {
  T rows[3][4];
  for (int y = 0; y < 3; ++y)
    for (int x = 0; x < 4; ++x) rows[y][x] = g[4 * (2 - y) + x] + g[4 * (3 - y) + x];
  for (int y = 0; y < 3; ++y)
    for (int x = 0; x < 3; ++x) w[3 * y + x] = rows[y][2 - x] + rows[y][3 - x];
}

}  // namespace genimg_fast

// SPDX-License-Identifier: MIT
// Weights of convolutions on doubled images, as those of transposed convolutions on the images themselves.
#include "cpu/resize_convolution_weight_kernel.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace genimg_fast::cpu {
namespace {

// Input channels of which a thread reads the taps in one piece: each output channel's lie 36 bytes apart, and those of the
// next one a whole row of channels.
constexpr int64_t kTogether = 16;

// Calls body(o, i) for all channels.
template <typename Body>
void each_kernel(int64_t out_channels, int64_t in_channels, const Body& body) {
  const int64_t blocks = (in_channels + kTogether - 1) / kTogether;
  const int64_t grain = std::max<int64_t>(1, kGrain / (16 * kTogether * std::max<int64_t>(out_channels, 1)));
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = std::min(in_channels, (block + 1) * kTogether);
      for (int64_t o = 0; o < out_channels; ++o)
        for (int64_t i = block * kTogether; i < last; ++i) body(o, i);
    }
  });
}

}  // namespace

template <typename T>
void resize_convolution_weight(const T* weight, int64_t out_channels, int64_t in_channels, T* transposed) {
  each_kernel(out_channels, in_channels, [=](int64_t o, int64_t i) {
    const T* w = weight + (o * in_channels + i) * 9;
    T* t = transposed + (i * out_channels + o) * 16;
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
  });
}

template <typename T>
void resize_convolution_weight_grad(const T* grad, int64_t out_channels, int64_t in_channels, T* grad_weight) {
  each_kernel(out_channels, in_channels, [=](int64_t o, int64_t i) {
    const T* g = grad + (i * out_channels + o) * 16;
    T* w = grad_weight + (o * in_channels + i) * 9;
    T rows[3][4];
    for (int x = 0; x < 4; ++x)
      for (int y = 0; y < 3; ++y) rows[y][x] = g[4 * (2 - y) + x] + g[4 * (3 - y) + x];
    for (int y = 0; y < 3; ++y)
      for (int x = 0; x < 3; ++x) w[3 * y + x] = rows[y][2 - x] + rows[y][3 - x];
  });
}

template void resize_convolution_weight<float>(const float*, int64_t, int64_t, float*);
template void resize_convolution_weight<double>(const double*, int64_t, int64_t, double*);
template void resize_convolution_weight_grad<float>(const float*, int64_t, int64_t, float*);
template void resize_convolution_weight_grad<double>(const double*, int64_t, int64_t, double*);

}  // namespace genimg_fast::cpu

// SPDX-License-Identifier: MIT
// Weights of convolutions on doubled images, as those of transposed convolutions on the images themselves.
#include "cpu/resize_convolution_weight_kernel.h"

#include <algorithm>

#include "common/resize_convolution.h"
#include "cpu/parallel.h"

namespace genimg_fast::cpu {
namespace {

// Input channels of which a thread reads the taps in one piece: each output channel's lie 36 bytes apart, and those of
// the next one a whole row of channels.
constexpr int64_t kTogether = 16;

// Calls body(o, i) for all channels.
template <typename Body>
void each_kernel(int64_t out_channels, int64_t in_channels, const Body& body) {
  const int64_t blocks = (in_channels + kTogether - 1) / kTogether;
  const int64_t values = kTransposedTaps * kTogether * std::max<int64_t>(out_channels, 1);
  parallel_for(0, blocks, std::max<int64_t>(1, kGrain / values), [&](int64_t begin, int64_t end) {
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
    T taps[kResizeTaps], sums[kTransposedTaps];
    std::copy_n(weight + (o * in_channels + i) * kResizeTaps, kResizeTaps, taps);
    sum_taps(taps, sums);
    std::copy_n(sums, kTransposedTaps, transposed + (i * out_channels + o) * kTransposedTaps);
  });
}

template <typename T>
void resize_convolution_weight_grad(const T* grad, int64_t out_channels, int64_t in_channels, T* grad_weight) {
  each_kernel(out_channels, in_channels, [=](int64_t o, int64_t i) {
    T sums[kTransposedTaps], taps[kResizeTaps];
    std::copy_n(grad + (i * out_channels + o) * kTransposedTaps, kTransposedTaps, sums);
    sum_taps_backward(sums, taps);
    std::copy_n(taps, kResizeTaps, grad_weight + (o * in_channels + i) * kResizeTaps);
  });
}

template void resize_convolution_weight<float>(const float*, int64_t, int64_t, float*);
template void resize_convolution_weight<double>(const double*, int64_t, int64_t, double*);
template void resize_convolution_weight_grad<float>(const float*, int64_t, int64_t, float*);
template void resize_convolution_weight_grad<double>(const double*, int64_t, int64_t, double*);

}  // namespace genimg_fast::cpu

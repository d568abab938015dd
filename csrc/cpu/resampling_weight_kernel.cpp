// SPDX-License-Identifier: MIT
// Weights of convolutions before or after a resampling by two, as those of the convolutions that the two are.
#include "cpu/resampling_weight_kernel.h"

#include <algorithm>

#include "common/resampling.h"
#include "cpu/parallel.h"

namespace genimg_fast::cpu {
namespace {

// Input channels of which a thread reads the taps in one piece: each output channel's lie 36 bytes apart, and those of
// the next one a whole row of channels.
constexpr int64_t kTogether = 16;

// Calls body(of the 9 taps, of the 16) with the offsets of each kernel.
template <typename Body>
void each_kernel(int64_t out_channels, int64_t in_channels, bool pools, const Body& body) {
  const int64_t blocks = (in_channels + kTogether - 1) / kTogether;
  const int64_t values = kResamplingTaps * kTogether * std::max<int64_t>(out_channels, 1);
  parallel_for(0, blocks, std::max<int64_t>(1, kGrain / values), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = std::min(in_channels, (block + 1) * kTogether);
      for (int64_t o = 0; o < out_channels; ++o)
        for (int64_t i = block * kTogether; i < last; ++i) {
          const int64_t plain = o * in_channels + i;
          body(plain * kPlainTaps, (pools ? plain : i * out_channels + o) * kResamplingTaps);
        }
    }
  });
}

}  // namespace

template <typename T>
void resampling_weight(const T* weight, int64_t out_channels, int64_t in_channels, bool pools, T* resampling) {
  each_kernel(out_channels, in_channels, pools, [=](int64_t of_taps, int64_t of_sums) {
    T sums[kResamplingTaps];
    resampling_taps(pools, [&](int k) { return weight[of_taps + k]; }, sums);
    std::copy_n(sums, kResamplingTaps, resampling + of_sums);
  });
}

template <typename T>
void resampling_weight_grad(const T* grad, int64_t out_channels, int64_t in_channels, bool pools, T* grad_weight) {
  each_kernel(out_channels, in_channels, pools, [=](int64_t of_taps, int64_t of_sums) {
    T sums[kResamplingTaps];
    std::copy_n(grad + of_sums, kResamplingTaps, sums);
    resampling_taps_backward(pools, sums, [&](int k, T value) { grad_weight[of_taps + k] = value; });
  });
}

template void resampling_weight<float>(const float*, int64_t, int64_t, bool, float*);
template void resampling_weight<double>(const double*, int64_t, int64_t, bool, double*);
template void resampling_weight_grad<float>(const float*, int64_t, int64_t, bool, float*);
template void resampling_weight_grad<double>(const double*, int64_t, int64_t, bool, double*);

}  // namespace genimg_fast::cpu

// SPDX-License-Identifier: MIT
// Mean and variance of each output channel, gathered by a convolution's epilogue while the values are in registers.
// Work is split into parts that do not depend on the number of threads, each part fills its own ChannelSums, and the
// parts are combined in order.
#pragma once
#include <vector>

#include "cpu/parallel.h"

namespace genimg_fast::cpu {

// Sums of (value - origin) and its square over one part, for one channel.  The origin lies among the values of the
// part, so nothing cancels however far the mean lies from zero.
template <typename T>
struct ChannelSums {
  T origin = 0;
  double sum = 0, sum_of_squares = 0;
  int64_t count = 0;

  // To the mean so far.
  void move_origin() {
    const T mean = static_cast<T>(origin + sum / static_cast<double>(count));
    if (!(mean - mean == 0)) return;  // inf - inf would hide which infinity the mean is
    const double d = static_cast<double>(mean) - static_cast<double>(origin), n = static_cast<double>(count);
    sum_of_squares -= d * (2 * sum - d * n);
    sum -= d * n;
    origin = mean;
  }
};

// sums [parts][channels] -> the mean and the biased variance of each channel, by Chan's formula.
template <typename T>
void combine(const std::vector<ChannelSums<T>>& sums, int64_t channels, T* mean, T* var) {
  const int64_t parts = static_cast<int64_t>(sums.size()) / channels;
  parallel_for(0, channels, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double count = 0, average = 0, squares = 0;
      for (int64_t p = 0; p < parts; ++p) {
        const ChannelSums<T>& s = sums[p * channels + c];
        if (s.count == 0) continue;
        const double n = s.count;
        const double delta = s.origin + s.sum / n - average;
        squares += s.sum_of_squares - s.sum * s.sum / n + delta * delta * count * n / (count + n);
        average += delta * n / (count + n);
        count += n;
      }
      mean[c] = static_cast<T>(average);
      var[c] = static_cast<T>(squares / count);
    }
  });
}

}  // namespace genimg_fast::cpu

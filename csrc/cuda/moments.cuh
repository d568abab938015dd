// SPDX-License-Identifier: MIT
#pragma once
#include "cuda/platform.cuh"

namespace genimg_fast::cuda {

// Mean and sum of squared deviations of `count` values: stable where the mean is far larger than the deviations, and
// mergeable (Chan, Golub and LeVeque 1983).
template <typename Real>
struct Moments {
  Real count, mean, m2;

  __device__ __forceinline__ void merge(Real other_count, Real other_mean, Real other_m2) {
    if (other_count == 0) return;
    if (count == 0) {  // delta, the mean itself, may be too large to be squared
      count = other_count, mean = other_mean, m2 = other_m2;
      return;
    }
    const Real total = count + other_count, delta = other_mean - mean, share = other_count / total;
    mean += delta * share;
    m2 += other_m2 + delta * delta * count * share;
    count = total;
  }
  template <typename Other>
  __device__ __forceinline__ void merge(const Moments<Other>& other) {
    merge(other.count, other.mean, other.m2);
  }

  // `size` of them, `step` apart, merged in two passes: no load waits for a division of what was loaded before, as it
  // would if each were merged into what the ones before it gave.
  template <typename Other>
  __device__ __forceinline__ static Moments merged(const Moments<Other>* first, int64_t size, int64_t step) {
    Moments all = {};
#pragma unroll 8
    for (int64_t i = 0; i < size; ++i) {
      const Moments<Other> m = first[i * step];
      all.count += m.count;
      all.mean += static_cast<Real>(m.count) * m.mean;
    }
    if (all.count > 0) all.mean /= all.count;
#pragma unroll 8
    for (int64_t i = 0; i < size; ++i) {
      const Moments<Other> m = first[i * step];
      const Real delta = m.mean - all.mean;
      all.m2 += m.m2 + m.count * delta * delta;
    }
    return all;
  }
};

}  // namespace genimg_fast::cuda

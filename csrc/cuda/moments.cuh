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
};

}  // namespace genimg_fast::cuda

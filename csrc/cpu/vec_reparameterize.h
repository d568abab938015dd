// SPDX-License-Identifier: MIT
// z = mu + exp(logvar / 2) * eps and its derivative, on vectors, and the loop that draws eps; for files compiled
// through foreach_isa.h, hence no include guard.  Such a file includes what vec_philox.h asks for.
#include "cpu/vec_philox.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
GF_INLINE Vec<T> reparameterized(Vec<T> mu, Vec<T> logvar, Vec<T> eps) {
  return mu + exp(T(0.5) * logvar) * eps;
}

// With respect to logvar.  With respect to mu it is `grad`.
template <typename T>
GF_INLINE Vec<T> reparameterized_grad_logvar(Vec<T> grad, Vec<T> logvar, Vec<T> eps) {
  return grad * T(0.5) * exp(T(0.5) * logvar) * eps;
}

GF_INLINE Vec<float> load_noise(const float* eps, float) { return load(eps); }
GF_INLINE Vec<double> load_noise(const float* eps, double) {
  Vec<double> v;
  for (int k = 0; k < kLanes<double>; ++k) v[k] = eps[k];
  return v;
}

// body(offset, count, eps) over [begin, end), begin a multiple of 4 * kBlocks.
template <typename T, typename Body>
GF_INLINE void for_each_with_noise(uint64_t seed, int64_t begin, int64_t end, const Body& body) {
  for (int64_t first = begin; first < end; first += 4 * kBlocks) {
    Vec<float> z[4];
    philox_normal(seed, static_cast<uint64_t>(first) / 4, z);
    float eps[4 * kBlocks];
    __builtin_memcpy(eps, z, sizeof eps);
    const int64_t last = first + 4 * kBlocks < end ? first + 4 * kBlocks : end;
    for_each_vector<T>(first, last, [&](int64_t i, auto count) { body(i, count, load_noise(eps + (i - first), T{})); });
  }
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

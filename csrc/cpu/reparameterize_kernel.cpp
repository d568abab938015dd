// SPDX-License-Identifier: MIT
// z = mu + exp(logvar / 2) * eps on the CPU.  One pass; eps is drawn in registers, a vector of Philox blocks at a time,
// forward and again backward, and never reaches memory.
#ifndef GENIMG_FAST_ISA

#include "cpu/reparameterize_kernel.h"

#include "common/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GENIMG_FAST_KERNEL_FILE "cpu/reparameterize_kernel.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu {
template <typename T>
void reparameterize(const T* mu, const T* logvar, uint64_t seed, T* z, int64_t numel) {
  parallel_for_chunks(numel, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(reparameterize_range<T>(mu, logvar, seed, z, begin, end));
  });
}

template <typename T>
void reparameterize_backward(const T* grad, const T* logvar, uint64_t seed, T* grad_logvar, int64_t numel) {
  parallel_for_chunks(numel, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(reparameterize_backward_range<T>(grad, logvar, seed, grad_logvar, begin, end));
  });
}

void philox4x32(uint32_t* counters, uint32_t key0, uint32_t key1, int64_t count) {
  for (int64_t i = GENIMG_FAST_DISPATCH_ISA(philox_vectors(counters, key0, key1, count)); i < count; ++i) {
    uint32_t words[4];
    for (int k = 0; k < 4; ++k) words[k] = counters[k * count + i];
    ::genimg_fast::philox4x32(words, key0, key1);
    for (int k = 0; k < 4; ++k) counters[k * count + i] = words[k];
  }
}

#define INSTANTIATE(T)                                                        \
  template void reparameterize<T>(const T*, const T*, uint64_t, T*, int64_t); \
  template void reparameterize_backward<T>(const T*, const T*, uint64_t, T*, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "cpu/vec_reparameterize.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
void reparameterize_range(const T* mu, const T* logvar, uint64_t seed, T* z, int64_t begin, int64_t end) {
  for_each_with_noise<T>(seed, begin, end, [&](int64_t i, auto count, Vec<T> eps) {
    store(z + i, reparameterized<T>(load(mu + i, count), load(logvar + i, count), eps), count);
  });
}

template <typename T>
void reparameterize_backward_range(const T* grad, const T* logvar, uint64_t seed, T* grad_logvar, int64_t begin,
                                   int64_t end) {
  for_each_with_noise<T>(seed, begin, end, [&](int64_t i, auto count, Vec<T> eps) {
    const Vec<T> g = load(grad + i, count), v = load(logvar + i, count);
    store(grad_logvar + i, reparameterized_grad_logvar<T>(g, v, eps), count);
  });
}

// Whole vectors of counters[4][count]; returns how many were done.
inline int64_t philox_vectors(uint32_t* counters, uint32_t key0, uint32_t key1, int64_t count) {
  int64_t i = 0;
  for (; i + kBlocks <= count; i += kBlocks) {
    Words words[4];
    for (int k = 0; k < 4; ++k) __builtin_memcpy(&words[k], counters + k * count + i, sizeof words[k]);
    philox4x32(words, key0, key1);
    for (int k = 0; k < 4; ++k) __builtin_memcpy(counters + k * count + i, &words[k], sizeof words[k]);
  }
  return i;
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

// SPDX-License-Identifier: MIT
// Prologue (convolution_variant.h) on whole pixels; for files compiled through foreach_isa.h, hence no include guard.
// Needs vec_activation.h.
//
// Kernels gather pixels into small buffers anyway, or can do so in L1: there the prologue costs one load and one store
// a vector, and the code that reads the buffers need not know of it.  Padding never passes through here.
#include "cpu/convolution_variant.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// from [pixels, channels] -> to [pixels, channels], rows `lda` apart in `to`.  With a null mean, a copy.
template <typename T>
void apply_prologue(const Prologue<T>& prologue, const T* from, int64_t pixels, int64_t channels, T* to, int64_t lda) {
  if (!prologue.mean) {
    for (int64_t p = 0; p < pixels; ++p) __builtin_memcpy(to + p * lda, from + p * channels, channels * sizeof(T));
    return;
  }
  with_activation(prologue.activation, [&](auto tag) {
    for_each_vector<T>(0, channels, [&](int64_t c, auto count) {
      const Vec<T> mean = load(prologue.mean + c, count), scale = load(prologue.scale + c, count);
      const Vec<T> shift = load(prologue.shift + c, count);
      for (int64_t p = 0; p < pixels; ++p) {
        const Vec<T> x = (load(from + p * channels + c, count) - mean) * scale + shift;
        store(to + p * lda + c, activate<decltype(tag)::value, T>(x, prologue.negative_slope), count);
      }
    });
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

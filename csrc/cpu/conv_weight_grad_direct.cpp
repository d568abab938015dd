// SPDX-License-Identifier: MIT
// Weight gradient of any convolution as one GEMM:
//
//     C [Cout x taps Cin] = small^T [Cout x pixels] * patches [pixels x taps Cin]
//
//   patches  what of large the taps of a pixel of small see; padding is zeros.
//   C        a block of it at a time (conv_weight_grad_blocks.h); all taps of a block of channels, so that what is
//            written of grad_weight is contiguous.
//
// FLOPs: 2 taps Cin Cout a pixel of small, those on padding included.
#ifndef GENIMG_FAST_ISA

#include "cpu/conv_weight_grad_blocks.h"

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_weight_grad_direct.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::direct {

template <typename T>
void run(const WeightGradCall<T>& call) {
  const Convolution& conv = call.conv;
  const int64_t element = sizeof(T), lanes = vector_bytes(active_isa()) / element, taps = conv.taps();
  constexpr int64_t kSmallBlock = 512, kColumns = 256, kBand = 128;  // float: 512, 256 and 128 KiB
  WeightGradPlan plan;
  plan.points = 1;
  plan.terms = conv.pixels();
  plan.small_block = even_block(conv.out_channels, kSmallBlock * 4 / element);
  plan.large_block = even_block(conv.in_channels, std::max<int64_t>(kColumns / taps, std::min<int64_t>(lanes, 4)));
  plan.columns = (taps * plan.large_block + lanes - 1) / lanes * lanes;
  plan.band = std::min(plan.terms, kBand);
  for_each_block(call, plan, [](const WeightGradJob<T>& job) { GENIMG_FAST_DISPATCH_ISA(run_direct_block<T>(job)); });
}

template void run<float>(const WeightGradCall<float>&);
template void run<double>(const WeightGradCall<double>&);

}  // namespace genimg_fast::cpu::direct

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_prologue.h"
#include "cpu/vec_weight_grad.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// A short copy: a call of memcpy would cost more than the few moves it makes.
template <typename T>
GF_INLINE void copy_run(const T* from, int64_t count, T* to) {
  for (; count >= kLanes<T>; count -= kLanes<T>, from += kLanes<T>, to += kLanes<T>) store(to, load(from));
  if (kLanes<T> > 8 && count >= 8) {
    __builtin_memcpy(to, from, 8 * sizeof(T));
    from += 8, to += 8, count -= 8;
  }
  if (kLanes<T> > 4 && count >= 4) {
    __builtin_memcpy(to, from, 4 * sizeof(T));
    from += 4, to += 4, count -= 4;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

template <typename T>
GF_INLINE void fill_zeros(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

// Pixels [first, last) of small and the patches of large -> job.a, job.b.
template <typename T>
void gather_patches(const WeightGradJob<T>& job, int64_t first, int64_t last) {
  const Convolution& conv = job.call.conv;
  const ConvolutionAxis &y = conv.y, &x = conv.x;
  const Prologue<T> small_prologue = of_channels(job.call.small_prologue, job.first_small);
  const Prologue<T> large_prologue = of_channels(job.call.large_prologue, job.first_large);
  const int64_t channels = job.large_channels;
  // Taps next to each other see pixels next to each other: one copy.
  const bool runs = !large_prologue.mean && x.dilation == 1 && channels == conv.in_channels;
  T *a = job.a, *b = job.b;
  for (int64_t pixel = first; pixel < last; ++pixel, a += job.lda(), b += job.ldb()) {
    apply_prologue(small_prologue, job.call.small + pixel * conv.out_channels + job.first_small, 1, job.small_channels,
                   a, job.lda());
    const int64_t n = pixel / (y.output * x.output), oy = pixel / x.output % y.output, ox = pixel % x.output;
    const int64_t y0 = oy * y.stride - y.padding, x0 = ox * x.stride - x.padding;
    T* to = b;
    for (int64_t ky = 0; ky < y.kernel; ++ky) {
      const int64_t iy = y0 + ky * y.dilation;
      if (iy < 0 || iy >= y.input) {
        fill_zeros(to, x.kernel * channels);
        to += x.kernel * channels;
        continue;
      }
      const T* row = job.call.large + (n * y.input + iy) * x.input * conv.in_channels + job.first_large;
      if (runs && x0 >= 0 && x0 + x.kernel <= x.input) {
        copy_run(row + x0 * channels, x.kernel * channels, to);
        to += x.kernel * channels;
        continue;
      }
      for (int64_t kx = 0; kx < x.kernel; ++kx, to += channels) {
        const int64_t ix = x0 + kx * x.dilation;
        if (ix < 0 || ix >= x.input)
          fill_zeros(to, channels);
        else if (large_prologue.mean)
          apply_prologue(large_prologue, row + ix * conv.in_channels, 1, channels, to, channels);
        else
          copy_run(row + ix * conv.in_channels, channels, to);
      }
    }
  }
}

template <typename T>
void run_direct_block(const WeightGradJob<T>& job) {
  const int64_t taps = job.call.conv.taps(), columns = taps * job.large_channels;
  for (int64_t first = job.first_term; first < job.last_term; first += job.plan.band) {
    const int64_t last = first + job.plan.band < job.last_term ? first + job.plan.band : job.last_term;
    gather_patches(job, first, last);
    multiply_band(job, last - first, columns, first != job.first_term);
  }
  for (int64_t s = 0; s < job.small_channels; ++s) {
    const T* sums = job.c + s * job.ldc();
    T* to = job.grad_weight + ((job.first_small + s) * job.call.conv.in_channels + job.first_large) * taps;
    for (int64_t l = 0; l < job.large_channels; ++l)
      for (int64_t tap = 0; tap < taps; ++tap) *to++ = sums[tap * job.large_channels + l];
  }
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

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
  // The products of a block fill a quarter of an L2 of 2 MiB.  The wider it is, the less often pixels are gathered.
  constexpr int64_t kSums = 512 * 1024, kMinColumns = 512, kMaxColumns = 1024, kBand = 128;
  WeightGradPlan plan;
  plan.points = 1;
  plan.terms = conv.pixels();
  const int64_t columns = std::clamp<int64_t>(kSums / (conv.out_channels * element), kMinColumns, kMaxColumns);
  plan.large_block = even_block(conv.in_channels, std::max<int64_t>(columns / taps, 1));
  plan.columns = (taps * plan.large_block + lanes - 1) / lanes * lanes;
  plan.small_block = even_block(conv.out_channels, kSums / (plan.columns * element));
  plan.band = even_block(plan.terms, kBand);
  for_each_block(call, plan, [](const WeightGradJob<T>& job) { GENIMG_FAST_DISPATCH_ISA(run_direct_block<T>(job)); });
}

template void run<float>(const WeightGradCall<float>&);
template void run<double>(const WeightGradCall<double>&);

}  // namespace genimg_fast::cpu::direct

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_prologue.h"
#include "cpu/vec_transpose_taps.h"
#include "cpu/vec_weight_grad.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// Short copies, for which a call of memcpy would take longer than the few moves.  Whole vectors are stored: what lies
// up to a vector beyond is overwritten, and has to be written later.  Nothing is read from image_end on.
template <typename T>
GF_INLINE void copy_values(const T* from, const T* image_end, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += kLanes<T>)
    if (from + i + kLanes<T> <= image_end)
      store(to + i, load(from + i));
    else
      store(to + i, load(from + i, Tail{static_cast<int>(count - i < kLanes<T> ? count - i : kLanes<T>)}));
}

template <typename T>
GF_INLINE void write_zeros(int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store(to + i, Vec<T>{});
}

// Pixels [first, last) of small -> job.a, unless they can be read where they lie: all channels of a pixel, and not so
// many that pixels evict each other from L1.
template <typename T>
SmallTerms<T> gather_pixels(const WeightGradJob<T>& job, int64_t first, int64_t last) {
  constexpr int64_t kNearBytes = 512;
  const Prologue<T> prologue = of_channels(job.call.small_prologue, job.block.first_small);
  const int64_t stride = job.call.conv.out_channels, channels = job.block.small_channels;
  const T* from = job.call.small + first * stride + job.block.first_small;
  const T* end = job.call.small + job.call.conv.pixels() * stride;
  const bool whole = channels == stride;
  if (!prologue.mean && whole && stride * static_cast<int64_t>(sizeof(T)) <= kNearBytes) return {from, stride};
  if (prologue.mean && whole) {
    apply_prologue(prologue, from, last - first, channels, job.a, job.lda());
    return {job.a, job.lda()};
  }
  T* to = job.a;
  for (int64_t pixel = first; pixel < last; ++pixel, from += stride, to += job.lda())
    if (prologue.mean)
      apply_prologue(prologue, from, 1, channels, to, job.lda());
    else
      copy_values(from, end, channels, to);
  return {job.a, job.lda()};
}

// What the taps of one row of the kernel see of a row of large, for `count` pixels of small in a row, the first of them
// number ox.
template <typename T>
void gather_row(const WeightGradJob<T>& job, const Prologue<T>& prologue, const T* row, int64_t ox, int64_t count,
                T* to) {
  const ConvolutionAxis& x = job.call.conv.x;
  const int64_t stride = job.call.conv.in_channels, channels = job.block.large_channels;
  const T* end = job.call.large + job.call.conv.batch * job.call.conv.y.input * x.input * stride;
  // Taps next to each other see pixels next to each other: one copy.
  const bool runs = x.dilation == 1 && channels == stride;
  for (; count > 0; ++ox, --count, to += job.ldb()) {
    const int64_t x0 = ox * x.stride - x.padding;
    if (runs && x0 >= 0 && x0 + x.kernel <= x.input) {
      if (prologue.mean)
        apply_prologue(prologue, row + x0 * channels, x.kernel, channels, to, channels);
      else
        copy_values(row + x0 * channels, end, x.kernel * channels, to);
      continue;
    }
    for (int64_t kx = 0; kx < x.kernel; ++kx) {
      const int64_t ix = x0 + kx * x.dilation;
      if (ix < 0 || ix >= x.input)
        write_zeros(channels, to + kx * channels);
      else if (prologue.mean)
        apply_prologue(prologue, row + ix * stride, 1, channels, to + kx * channels, channels);
      else
        copy_values(row + ix * stride, end, channels, to + kx * channels);
    }
  }
}

// The patches of large that pixels [first, last) of small see -> job.b.
template <typename T>
void gather_patches(const WeightGradJob<T>& job, int64_t first, int64_t last) {
  const Convolution& conv = job.call.conv;
  const ConvolutionAxis &y = conv.y, &x = conv.x;
  const Prologue<T> prologue = of_channels(job.call.large_prologue, job.block.first_large);
  const int64_t run = x.kernel * job.block.large_channels, columns = y.kernel * run;
  const int64_t padded = (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  for (int64_t pixel = first, count; pixel < last; pixel += count) {
    const int64_t n = pixel / (y.output * x.output), oy = pixel / x.output % y.output, ox = pixel % x.output;
    count = x.output - ox < last - pixel ? x.output - ox : last - pixel;
    T* to = job.b + (pixel - first) * job.ldb();
    for (int64_t ky = 0; ky < y.kernel; ++ky, to += run) {
      const int64_t iy = oy * y.stride - y.padding + ky * y.dilation;
      const T* row = job.call.large + (n * y.input + iy) * x.input * conv.in_channels + job.block.first_large;
      if (iy >= 0 && iy < y.input)
        gather_row(job, prologue, row, ox, count, to);
      else
        for (int64_t i = 0; i < count; ++i) write_zeros(run, to + i * job.ldb());
    }
    // What fills the last vector is multiplied, though never used.
    for (int64_t i = 0; i < count; ++i) write_zeros(padded - columns, to + i * job.ldb());
  }
}

template <typename T>
void run_direct_block(const WeightGradJob<T>& job) {
  const Convolution& conv = job.call.conv;
  const int64_t taps = conv.taps(), channels = job.block.large_channels;
  sum_bands(
      job, taps * channels, [&](int64_t first, int64_t last) { return gather_pixels(job, first, last); },
      [&](int64_t first, int64_t last) { gather_patches(job, first, last); },
      [&](int64_t pixel) { return pixel / conv.x.output; });
  for (int64_t s = 0; s < job.block.small_channels; ++s)
    transpose_taps(job.c + s * job.ldc(), taps, channels,
                   job.grad_weight + ((job.block.first_small + s) * conv.in_channels + job.block.first_large) * taps);
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

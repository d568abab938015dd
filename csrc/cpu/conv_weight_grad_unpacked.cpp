// SPDX-License-Identifier: MIT
// Weight gradient of few pixels: the sum of so many outer products, written straight to where it belongs.
//
//     grad_weight [Cout x (Cin, tap)] = small^T [Cout x pixels] * patches [pixels x (Cin, tap)]
//
// The patches are gathered once, in the order of the weight.  A few output channels at a time: each value is summed in
// a register and stored, past the caches where there are more than these hold.  Work is split by output channels.
//
// Bytes: the gradient once.  FLOPs: 2 taps Cin Cout a pixel of small, those on padding included.
#ifndef GENIMG_FAST_ISA

#include <algorithm>

#include "cpu/conv_weight_grad_variants.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu {

constexpr int64_t kOuterRows = 8;  // output channels at a time

template <typename T>
struct OuterJob {
  const WeightGradCall<T>& call;
  T *small, *patches, *patches_by_tap;  // [pixels, small_row], [pixels, patch_row] twice
  int64_t small_row, patch_row;
  bool past_caches;
};

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_weight_grad_unpacked.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::unpacked {
namespace {

constexpr int64_t kCachedBytes = 1 << 20;

}  // namespace

template <typename T>
bool supports_weight_grad(const Convolution& conv) {
  const int64_t lanes = vector_bytes(active_isa()) / static_cast<int64_t>(sizeof(T));
  return conv.pixels() <= kMostUnpackedPixels && conv.taps() * conv.in_channels % lanes == 0;
}

template <typename T>
void run(const WeightGradCall<T>& call) {
  const Convolution& conv = call.conv;
  const int64_t depth = conv.taps() * conv.in_channels, bytes = conv.out_channels * depth * sizeof(T);
  const int64_t small_row = (conv.out_channels + kOuterRows - 1) / kOuterRows * kOuterRows;
  const int64_t patch_row = leading_dimension<T>(depth);
  const int64_t patch_values = conv.pixels() * patch_row;
  const auto [small, patches, patches_by_tap] =
      thread_workspace<T>(conv.pixels() * small_row, patch_values, patch_values);
  const bool aligned = reinterpret_cast<uintptr_t>(call.grad_weight) % 64 == 0;
  const OuterJob<T> job{call, small, patches, patches_by_tap, small_row, patch_row, aligned && bytes > kCachedBytes};
  GENIMG_FAST_DISPATCH_ISA(gather_factors<T>(job));
  parallel_for(0, small_row / kOuterRows, 1, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(sum_outer_products<T>(job, begin * kOuterRows, end * kOuterRows));
  });
}

#define INSTANTIATE(T)                                       \
  template bool supports_weight_grad<T>(const Convolution&); \
  template void run<T>(const WeightGradCall<T>&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu::unpacked

#else  // once per instruction set

#include "cpu/vec_activation.h"
#include "cpu/vec_prologue.h"
#include "cpu/vec_transpose_taps.h"
//
#include "cpu/vec_patches.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
void gather_factors(const OuterJob<T>& job) {
  const WeightGradCall<T>& call = job.call;
  apply_prologue(call.small_prologue, call.small, call.conv.pixels(), call.conv.out_channels, job.small, job.small_row);
  gather_in_weight_order(PatchSource<T>{call.conv, call.large, call.large_prologue}, job.patches_by_tap, job.patches,
                         job.patch_row);
}

// The rows of grad_weight of `Rows` output channels.
template <int Rows, typename T>
void sum_rows(const OuterJob<T>& job, int64_t channel) {
  const int64_t pixels = job.call.conv.pixels(), depth = job.call.conv.taps() * job.call.conv.in_channels;
  T* const to = job.call.grad_weight + channel * depth;
  for (int64_t i = 0; i < depth; i += kLanes<T>) {
    const T *small = job.small + channel, *patch = job.patches + i;
    Vec<T> sum[Rows] = {};
    for (int64_t p = 0; p < pixels; ++p, small += job.small_row, patch += job.patch_row) {
      const Vec<T> x = load(patch);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sum[r] += small[r] * x;
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
      if (job.past_caches)
        stream(to + r * depth + i, sum[r]);
      else
        store(to + r * depth + i, sum[r]);
  }
}

template <typename T>
void sum_outer_products(const OuterJob<T>& job, int64_t first, int64_t last) {
  const int64_t channels = job.call.conv.out_channels;
  if (last > channels) last = channels;
  int64_t channel = first;
  for (; channel + kOuterRows <= last; channel += kOuterRows) sum_rows<kOuterRows>(job, channel);
  for (; channel < last; ++channel) sum_rows<1>(job, channel);
  if (job.past_caches) stream_fence();
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

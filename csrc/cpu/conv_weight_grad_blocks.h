// SPDX-License-Identifier: MIT
// How a weight gradient is cut up and shared out.
//
// It is a product with a large result and a deep sum: at each point [small channels x terms] x [terms x columns], a term
// being a pixel or a tile.  The result is cut into blocks of channels of small and of large whose sums stay in L2, and a
// block is summed band by band:
//
//     band:   small -> a [point][term][small channels]      prologue applied, padding zeros
//             large -> b [point][term][columns]
//             c [point][small channels][columns] += a^T b
//     block:  c -> grad_weight
//
// Nothing else is written to memory.  Small is read once a block of large's channels, large once a block of small's.
// Where blocks are too few to share out, the terms are split too, into parts whose gradients are added in order.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/aligned_array.h"
#include "cpu/conv_weight_grad_variants.h"
#include "cpu/parallel.h"

namespace genimg_fast::cpu {

struct WeightGradPlan {
  int64_t points;
  int64_t terms;
  int64_t small_block, large_block;  // channels
  int64_t columns;                   // of a block at each point, whole vectors
  int64_t band;                      // terms
};

// One block of channels over one part of the terms: the unit of work.
template <typename T>
struct WeightGradJob {
  const WeightGradCall<T>& call;
  const WeightGradPlan& plan;
  int64_t first_small, small_channels;
  int64_t first_large, large_channels;
  int64_t first_term, last_term;
  T *a, *b, *c;
  const T* zeros;  // [max(small_block, large_block)]: a pixel beyond the edge
  T* grad_weight;

  int64_t lda() const { return leading_dimension<T>(plan.small_block); }
  int64_t ldb() const { return leading_dimension<T>(plan.columns); }
  int64_t ldc() const { return plan.columns; }
  // The points are set apart by a line too.
  int64_t a_point() const { return plan.band * lda() + 64 / sizeof(T); }
  int64_t b_point() const { return plan.band * ldb() + 64 / sizeof(T); }
  int64_t c_point() const { return plan.small_block * ldc() + 64 / sizeof(T); }
};

// n channels in equal blocks of at most `most`.
inline int64_t even_block(int64_t n, int64_t most) {
  const int64_t blocks = (n + most - 1) / most;
  return (n + blocks - 1) / blocks;
}

// Calls run(job) for all blocks and parts.
template <typename T, typename Run>
void for_each_block(const WeightGradCall<T>& call, const WeightGradPlan& plan, const Run& run) {
  constexpr int64_t kEnoughItems = 16;  // not a function of the number of threads, for the parts add up in order
  const Convolution& conv = call.conv;
  auto count = [](int64_t n, int64_t block) { return (n + block - 1) / block; };
  const int64_t small_blocks = count(conv.out_channels, plan.small_block);
  const int64_t large_blocks = count(conv.in_channels, plan.large_block);
  const int64_t blocks = small_blocks * large_blocks;
  const int64_t most_parts = std::max<int64_t>(plan.terms / (4 * plan.band), 1);
  const int64_t parts = std::clamp<int64_t>(count(kEnoughItems, blocks), 1, most_parts);
  const int64_t weights = conv.out_channels * conv.in_channels * conv.taps();
  auto partial = aligned_array<T>(parts > 1 ? parts * weights : 0);

  parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    WeightGradJob<T> job{call, plan, 0, 0, 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
    const std::vector<T> zeros(std::max(plan.small_block, plan.large_block), T(0));
    auto a = aligned_array<T>(plan.points * job.a_point()), b = aligned_array<T>(plan.points * job.b_point());
    auto c = aligned_array<T>(plan.points * job.c_point());
    // What lies between the rows' ends and the vectors' is multiplied, though never used.
    std::fill_n(b.get(), plan.points * job.b_point(), T(0));
    job.a = a.get(), job.b = b.get(), job.c = c.get(), job.zeros = zeros.data();
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item / blocks, block = item % blocks;
      job.first_small = block % small_blocks * plan.small_block;
      job.small_channels = std::min(plan.small_block, conv.out_channels - job.first_small);
      job.first_large = block / small_blocks * plan.large_block;
      job.large_channels = std::min(plan.large_block, conv.in_channels - job.first_large);
      job.first_term = plan.terms * part / parts;
      job.last_term = plan.terms * (part + 1) / parts;
      job.grad_weight = parts > 1 ? partial.get() + part * weights : call.grad_weight;
      run(job);
    }
  });

  if (parts > 1)
    parallel_for(0, weights, kChunk, [&](int64_t begin, int64_t end) {
      std::copy(partial.get() + begin, partial.get() + end, call.grad_weight + begin);
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = begin; i < end; ++i) call.grad_weight[i] += partial[part * weights + i];
    });
}

}  // namespace genimg_fast::cpu
